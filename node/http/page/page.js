// The page of one node. It asks for the status every two seconds and for the curves every ten, while somebody looks.
// Every name is put onto the page as text, never as markup: it may come from a peer.
"use strict";

const STATUS_MS = 2000;
const CURVES_EVERY = 5; // statuses
const SLOW_MS = 15000; // while the node does not answer
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children); // strings become text nodes
  return element;
}

function draw(tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// --- how figures are written ---

function figure(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return Array.isArray(value) ? value.map(figure).join(" ") : String(value);
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  const whole = Math.floor(seconds);
  for (const [unit, size, smaller, part] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]])
    if (whole >= size) return `${Math.floor(whole / size)} ${unit} ${Math.floor((whole % size) / part)} ${smaller}`;
  return `${whole} s`;
}

const short = (peer) => peer.slice(-8);

const hues = new Map();

// Neighbours in this order are far apart on the circle, so that few peers never look alike.
function hue(peer) {
  if (!hues.has(peer)) hues.set(peer, (hues.size * 137.5) % 360);
  return hues.get(peer);
}

function coloured(element, peer) {
  element.style.setProperty("--hue", hue(peer)); // by script: a style attribute is forbidden to this page
  return element;
}

// --- curves ---

function chart(box, times, series, label) {
  const width = Math.max(260, box.clientWidth), height = 190, left = 52, bottom = 20, top = 6; // in pixels of the page
  const values = series.flatMap(({ values }) => values.filter((value) => value !== null));
  if (values.length < 2) return void box.replaceChildren(make("p", { class: "note" }, "nothing to draw yet"));
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  const [first, last] = [times[0], Math.max(times[times.length - 1], times[0] + 1)];
  const x = (time) => left + ((time - first) / (last - first)) * (width - left - 4);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of [high, (high + low) / 2, low]) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, figure(Number(value.toPrecision(3)))));
  }
  svg.append(draw("text", { x: left, y: height - 4 }, `${duration(first)} after its start`));
  svg.append(draw("text", { x: width, y: height - 4, "text-anchor": "end" }, duration(last)));
  for (const { values: line, name } of series) {
    let path = "", pen = "M";
    line.forEach((value, index) => {
      if (value === null) return;
      path += `${pen}${x(times[index]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    if (path) svg.append(draw("path", { class: name, d: path }));
  }
  box.replaceChildren(svg);
}

function showCurves(curves) {
  chart(byId("loss"), curves.at_s, [
    { values: curves.loss, name: "first" }, { values: curves.held_out_loss, name: "second" },
  ], "Loss since this node started");
  chart(byId("rate"), curves.at_s, [{ values: curves.samples_per_second, name: "first" }], "Samples per second since this node started");
}

// --- the map, one for each mode ---

function peerChip(peer, own) {
  const classes = peer === own ? "peer own" : "peer";
  return coloured(make("span", { class: classes, title: peer }, short(peer)), peer);
}

function stagesMap(section, own) {
  const box = make("div", { class: "stages" });
  (section.members_by_stage || []).forEach((count, stage) => {
    const members = (section.members || []).filter((member) => member.stage === stage);
    const column = make("div", { class: count ? "stage" : "stage empty" }, make("h3", {}, `stage ${stage} · ${count || "nobody"}`));
    column.append(...members.map((member) => peerChip(member.peer_id, own)));
    box.append(column);
  });
  const trainers = (section.members || []).filter((member) => member.stage === null);
  if (trainers.length)
    box.append(make("div", { class: "stage" }, make("h3", {}, "train only"), ...trainers.map((member) => peerChip(member.peer_id, own))));
  return [box, "Each column is a stage of the model, with the peers that hold it. Outlined: this node."];
}

function ringMap(section, own) {
  const members = section.members || [];
  const svg = draw("svg", { viewBox: "-210 -150 420 300", role: "img", "aria-label": `this node and ${members.length} neighbours` });
  const most = Math.max(1, ...members.map((member) => member.models || 0));
  const dots = [];
  members.forEach((member, index) => {
    const angle = (2 * Math.PI * index) / members.length - Math.PI / 2;
    const [x, y] = [150 * Math.cos(angle), 112 * Math.sin(angle)];
    svg.append(draw("line", { x1: 0, y1: 0, x2: x, y2: y, "stroke-width": 1 + (4 * (member.models || 0)) / most }));
    const dot = coloured(draw("circle", { cx: x, cy: y, r: 9 }), member.peer_id);
    dot.append(draw("title", {}, `${member.peer_id}: ${figure(member.models)} models taken from it`));
    dots.push(dot, draw("text", { x, y: y + 24, "text-anchor": "middle" }, short(member.peer_id)));
  });
  svg.append(...dots, draw("circle", { class: "own", r: 12 }), draw("text", { y: 28, "text-anchor": "middle" }, "this node"));
  const box = make("div", { class: "ring" });
  box.append(svg);
  return [box, "This node and its neighbours: the thicker a line, the more models came over it."];
}

function expertsMap(section, own) {
  const box = make("div", { class: "layers" });
  const across = (section.grid || [1]).slice(-1)[0];
  for (const layer of section.layers || []) {
    const cells = make("div", { class: "experts" });
    cells.style.setProperty("grid-template-columns", `repeat(${Number(across)}, minmax(0, 2rem))`);
    for (const row of section.table || []) {
      if (!row.expert.startsWith(`${layer}.`)) continue;
      const host = row.hosts[0];
      const classes = ["expert", row.here ? "own" : "", host ? "" : "lost"].join(" ");
      const cell = make("div", { class: classes, title: `${row.expert}: ${host ? short(host) : "nobody"}` });
      cells.append(host ? coloured(cell, host) : cell);
    }
    box.append(make("div", { class: "layer" }, make("h3", {}, String(layer)), cells));
  }
  const legend = make("p", {}, ...new Set((section.table || []).flatMap((row) => row.hosts.slice(0, 1))));
  legend.replaceChildren(...[...legend.childNodes].map((node) => peerChip(node.textContent, own)));
  return [make("div", {}, box, legend), "Each square is an expert in the colour of its host. Outlined: on this node. Hatched: nobody's."];
}

function fragmentsMap(section, own) {
  const box = make("div", { class: "stages" });
  (section.fragments || []).forEach((fragment, index) => {
    const facts = [`averaged after step ${figure(fragment.averaged_at_step)}`, `${figure(fragment.steps_not_averaged)} steps since`];
    if (fragment.round !== "none") facts.push(fragment.round);
    box.append(make("div", { class: "stage" }, make("h3", {}, `outer/${index}`), ...facts.map((fact) => make("p", {}, fact))));
  });
  const members = make("p", {});
  members.replaceChildren(...(section.members || []).map((member) => peerChip(member.peer_id, own)));
  return [make("div", {}, box, members), "Each box is a fragment of the model, averaged by itself; below, with whom."];
}

const MAPS = { pipeline: stagesMap, gossip: ringMap, collective: fragmentsMap, moe: expertsMap };

// --- the whole ---

const PARTS = [
  ["role", "role"], ["synced", "has its state"], ["leading", "leads the run"], ["microbatches_counted", "microbatches counted"],
  ["calls_served", "calls served"], ["queue", "tasks waiting"], ["accuracy", "accuracy"], ["averages", "averages"],
  ["rounds", "rounds averaged"], ["rounds_missed", "rounds missed"], ["group", "peers in the last round"],
  ["pushes_taken", "models taken by neighbours"], ["models_refused", "models refused"], ["partition", "its data"],
  ["experts_hosted", "experts here"], ["experts_adopted", "experts adopted"], ["calls", "calls of experts"],
  ["call_p50_ms", "a call, in ms"], ["staleness", "staleness"], ["waiting_for", "waits for"],
];

function list(box, rows) {
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  box.replaceChildren(...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, figure(value))]));
}

function showFigures(status, section) {
  const { step, steps } = section;
  const rows = [
    ["step", steps ? `${figure(step)} of ${figure(steps)}` : figure(step)], ["loss", figure(section.loss)],
    ["held-out loss", figure(section.held_out_loss)], ["samples per second", figure(section.samples_per_second)],
    ["peers in the run", figure(section.peers)], ["connected", figure(status.network.peers)],
  ];
  byId("figures").replaceChildren(...rows.map(([name, value]) => make("div", { class: "figure" }, make("b", {}, value), make("span", {}, name))));
}

function showStatus(status) {
  const { node, run, life, resources } = status;
  const section = status.services[run.mode] || {};
  byId("run").textContent = run.name || "not fetched yet";
  document.title = `${run.name || "Murmura"} · ${life.state}`;
  byId("mode").textContent = [run.mode, run.run_id.slice(0, 8), run.private ? "private" : ""].filter(Boolean).join(" · ");
  const badge = byId("state");
  badge.textContent = `${life.state} for ${duration(life.since_seconds)}`;
  badge.className = status.healthy ? "badge good" : "badge bad";
  showProblems(status.unhealthy_reasons);
  showFigures(status, section);
  const [map, note] = MAPS[run.mode] && section.members ? MAPS[run.mode](section, node.peer_id) : ["", "It has not begun to train yet."];
  byId("map").replaceChildren(map);
  byId("map-note").textContent = note;
  list(byId("part"), PARTS.map(([key, name]) => [name, section[key]]));
  list(byId("machine"), [
    ["memory", resources.memory_bytes && `${Math.round(resources.memory_bytes / 2 ** 20)} MB`],
    ["compute threads", status.limits.threads], ["processor time", resources.cpu_seconds && duration(resources.cpu_seconds)],
    ["files open", resources.descriptors], ["loop lag, ms", resources.loop_lag_p99_ms], ["up for", duration(node.uptime_seconds)],
    ...node.addresses.slice(0, 3).map((address) => ["address", address]),
  ]);
  byId("footer").textContent = `${node.peer_id} · murmura ${node.version} · ${status.time}`;
}

function showProblems(problems) {
  const box = byId("problems");
  box.hidden = !problems.length;
  box.replaceChildren(...problems.map((problem) => make("li", {}, problem)));
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(`the node answers ${answer.status}: ${(await answer.text()).trim()}`);
  return answer.json();
}

async function turn(count) {
  let wait = STATUS_MS;
  if (!document.hidden) {
    try {
      showStatus(await ask("/api/status"));
      if (count % CURVES_EVERY === 0) showCurves(await ask("/api/history"));
    } catch (error) {
      const badge = byId("state");
      badge.textContent = "no answer";
      badge.className = "badge bad";
      showProblems([error.name === "TypeError" ? "the node does not answer; what is shown is old" : error.message]);
      wait = SLOW_MS;
      count = -1; // the curves first, once it is back
    }
  }
  setTimeout(turn, wait, count + 1);
}

turn(0);
