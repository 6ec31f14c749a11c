"""Every peer has the whole model and trains by itself; now and then groups average how far they have come (DiLoCo)."""
