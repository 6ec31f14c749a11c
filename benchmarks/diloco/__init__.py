"""What averaging outer gradients costs in loss and saves in bytes, against averaging every gradient."""
