// The cluster as a picture: targets at the left, drafters at the right, links between them.

import { byId, hue, percent, short, shortModel, svg } from "./dom.js";

const ROW = 62;
const DISC = 17;
const TARGET_DISC = 43;
const AWAY = ["lost", "offline", "unknown"];
const parts = new Map();
let drawn = "";
let latest = null;

/** Whether a node is neither offline nor lost. */
export const isHere = (node) => !AWAY.includes(node.status);

/** Draw a cluster: `nodes` by id, `activity` of each drafter as {share, isActive, rate}. */
export function draw(nodes, activity) {
  latest = [nodes, activity];
  const width = byId("picture").clientWidth || 600;
  const ids = Object.keys(nodes);
  const shape = JSON.stringify([width, ids, ids.map((id) => role(nodes[id]))]);
  if (shape !== drawn) {
    drawn = shape;
    build(nodes, width);
  }
  for (const [id, node] of Object.entries(nodes)) update(id, node, nodes, activity);
}

new ResizeObserver(() => latest && draw(...latest)).observe(byId("picture"));

const role = (node) => node.state.role ?? "drafter";

/** What a target reports of a drafter, or of the committee's member that a node serves. */
const partner = (target, id) => target.state.drafters?.[id] ??
  Object.values(target.state.members ?? {}).find((member) => member.nodes.includes(id));

function build(nodes, width) {
  const picture = byId("picture");
  parts.clear();
  const targets = Object.keys(nodes).filter((id) => role(nodes[id]) === "target");
  const drafters = Object.keys(nodes).filter((id) => role(nodes[id]) !== "target");
  const height = Math.max(220, ROW * drafters.length + 20, 190 * targets.length);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.setAttribute("height", height);
  const left = Math.max(66, width * 0.17);
  const right = Math.max(width * 0.5, left + 110);
  const at = new Map([
    ...spread(targets, left, height, -14),
    ...spread(drafters, right, height, 0),
  ]);
  picture.replaceChildren();
  if (!targets.length) {
    picture.append(svg("text", { x: width / 2, y: height / 2, class: "middle empty" }, "no target yet"));
  }
  for (const target of targets) {
    for (const drafter of drafters) picture.append(link(target, drafter, at));
  }
  for (const id of targets) picture.append(targetDisc(id, at.get(id)));
  for (const id of drafters) picture.append(drafterDisc(id, at.get(id), width));
}

/** Places in a column, evenly from top to bottom. */
function spread(ids, x, height, dy) {
  return ids.map((id, i) => [id, [x, (height * (i + 0.5)) / ids.length + dy]]);
}

function link(target, drafter, at) {
  const [[x0, y0], [x1, y1]] = [at.get(target), at.get(drafter)];
  const [from, to] = [x0 + TARGET_DISC, x1 - DISC - 6];
  const bend = (from + to) / 2;
  const d = `M${from} ${y0}C${bend} ${y0} ${bend} ${y1} ${to} ${y1}`;
  const group = svg("g", { class: hue(drafter) });
  const edge = svg("path", { d, class: "edge" });
  // Drafts travel from the drafter to the target.
  const back = `M${to} ${y1}C${bend} ${y1} ${bend} ${y0} ${from} ${y0}`;
  const flow = svg("path", { d: back, class: "flow" });
  const rtt = svg("text", { x: to - 6, y: y1 - 7, "text-anchor": "end", class: "rtt" });
  group.append(edge, flow, rtt);
  parts.set(`${target}>${drafter}`, { group, edge, flow, rtt });
  return group;
}

function targetDisc(id, [x, y]) {
  const group = svg("g", { transform: `translate(${x} ${y})` });
  const speed = svg("text", { class: "middle big", y: 5 });
  const name = svg("text", { class: "middle name", y: TARGET_DISC + 22 });
  const note = svg("text", { class: "middle note", y: TARGET_DISC + 39 });
  group.append(
    svg("circle", { class: "disc", r: TARGET_DISC }), speed,
    svg("text", { class: "middle note", y: 22 }, "tokens/s"),
    svg("circle", { class: "lamp", r: 6, cx: 30, cy: -30 }), name, note,
  );
  parts.set(id, { group, speed, name, note, room: 2 * x });
  return group;
}

function drafterDisc(id, [x, y], width) {
  const group = svg("g", { transform: `translate(${x} ${y})` });
  const ring = svg("circle", { class: "ring", r: DISC, pathLength: 100, transform: "rotate(-90)" });
  const rate = svg("text", { class: "middle rate", y: 4 });
  const name = svg("text", { class: "name", x: DISC + 12, y: -2 });
  const note = svg("text", { class: "note", x: DISC + 12, y: 15 });
  group.append(
    svg("circle", { class: "disc", r: DISC }), svg("circle", { class: "track", r: DISC }), ring, rate,
    svg("circle", { class: "lamp", r: 5, cx: 12, cy: -13 }), name, note,
  );
  parts.set(id, { group, ring, rate, name, note, room: width - x - DISC - 16 });
  return group;
}

function update(id, node, nodes, activity) {
  const part = parts.get(id);
  if (!part) return;
  const isGone = !isHere(node);
  const why = node.reason ? `${node.status}: ${node.reason}` : node.status;
  const isTarget = role(node) === "target";
  const kind = isTarget ? "target" : hue(id);
  part.group.setAttribute("class", `${kind} ${node.status} ${isGone ? "gone" : ""}`);
  fit(part.name, id, part.room);
  const { share = null, rate = null } = activity[id] ?? {};
  if (isTarget) {
    part.speed.textContent = isGone ? "–" : short(rate);
    const load = `${node.state.running ?? 0} running · ${node.state.queued ?? 0} waiting`;
    fit(part.note, node.status === "ready" ? load : why, part.room);
    for (const other of Object.keys(nodes)) updateLink(id, other, node, nodes, activity);
    return;
  }
  part.rate.textContent = isGone || share === null ? "" : percent(share).replace(" %", "");
  // A round end of a line without length would still be a dot.
  part.ring.setAttribute("visibility", isGone || !share ? "hidden" : "visible");
  part.ring.setAttribute("stroke-dasharray", `${100 * (share ?? 0)} 100`);
  const token_ms = Object.values(nodes).map((each) => each.state.drafters?.[id]?.token_ms).find(Number);
  const speed = token_ms ? `${short(token_ms)} ms/token` : "";
  const about = [shortModel(node.state.model), speed].filter(Boolean).join(" · ");
  const note = node.status === "ready" ? about : why;
  fit(part.note, note, part.room);
}

function updateLink(target, drafter, node, nodes, activity) {
  const part = parts.get(`${target}>${drafter}`);
  if (!part) return;
  const facts = partner(node, drafter);
  const isLive = isHere(node) && isHere(nodes[drafter]) && facts !== undefined;
  const { isActive = false, part: weight = 0 } = activity[drafter] ?? {};
  part.group.setAttribute("class", `${hue(drafter)} ${isLive ? "" : "gone"}`);
  part.edge.setAttribute("class", `edge ${isLive ? "" : "gone"}`);
  part.flow.setAttribute("class", `flow ${isLive && isActive ? "on" : ""}`);
  part.flow.setAttribute("stroke-width", 3 + 3 * weight);
  part.rtt.textContent = isLive && facts.rtt_ms !== undefined ? `${short(facts.rtt_ms)} ms` : "";
}

/** Write a text, shortened in its middle until it fits. */
function fit(target, text, room) {
  if (target.dataset.text === text && target.dataset.room === String(room)) return;
  Object.assign(target.dataset, { text, room });
  target.textContent = text;
  for (let length = text.length - 2; length > 3 && target.getComputedTextLength() > room; length -= 1) {
    const head = Math.ceil(length * 0.6);
    target.textContent = `${text.slice(0, head)}…${text.slice(text.length - (length - head))}`;
  }
}
