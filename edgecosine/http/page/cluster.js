// The cluster's side of the page: health, figures, picture and table, from the events of the server.

import { byId, element, hue, percent, say, short, shortModel } from "./dom.js";
import { events } from "./events.js";
import * as history from "./history.js";
import * as picture from "./picture.js";

const AGAIN_MS = 1500;
const WINDOW_S = 12;
/** Counts of each node in the last seconds: [ms, counts by drafter], [ms, tokens of a target]. */
const seen = [];

/** Show the cluster's events for as long as the page is open; `onModels` gets the models' names. */
export async function watch(onModels, onKeyWanted) {
  for (;;) {
    try {
      for await (const event of events("/events")) take(event, onModels);
    } catch (error) {
      if (error.status === 401) await onKeyWanted();
    }
    health("away", "connection lost, trying again");
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

function take(event, onModels) {
  if (event.loading) {
    health("degraded", "loading the model");
    return;
  }
  if (event.history) {
    history.add(event.history);
    history.draw();
    return;
  }
  history.add(event.samples.length ? event.samples : [total(event.nodes)]);
  history.draw();
  say(byId("cluster-name"), event.cluster);
  if (event.broker) {
    health("away", "no broker");
    concerns([`the broker does not answer: ${event.broker}`]);
    return;
  }
  const isHealthy = event.is_online && !event.concerns.length;
  health(isHealthy ? "healthy" : "degraded", isHealthy ? "healthy" : event.is_online ? "needs attention" : "offline");
  concerns(event.concerns);
  onModels(event.models);
  const activity = measure(event.nodes);
  picture.draw(event.nodes, activity);
  table(event.nodes, activity);
}

/** A sample of all targets, for a gateway, which has no counts of its own. */
function total(nodes) {
  const states = Object.values(nodes).map(({ state }) => state);
  const names = ["tokens", "rounds", "draft_tokens", "accepted_tokens"];
  return [Date.now() / 1000, ...names.map((name) => states.reduce((sum, state) => sum + (state[name] ?? 0), 0))];
}

function health(state, text) {
  byId("health").dataset.state = state;
  say(byId("health"), text);
}

function concerns(texts) {
  const list = byId("concerns");
  if ([...list.children].map((item) => item.textContent).join("\n") === texts.join("\n")) return;
  list.replaceChildren(...texts.map((text) => element("li", { textContent: text })));
}

/** What each node did in the last seconds. */
function measure(nodes) {
  const now = performance.now() / 1000;
  const counts = {};
  for (const [id, { state }] of Object.entries(nodes)) {
    if (state.role === "target") counts[id] = { tokens: state.tokens ?? 0 };
    for (const [drafter, facts] of Object.entries(state.drafters ?? {})) {
      const count = (counts[drafter] ??= { proposed: 0, accepted: 0 });
      count.proposed += facts.proposed ?? 0;
      count.accepted += facts.accepted ?? 0;
    }
  }
  seen.push([now, counts]);
  while (seen[0][0] < now - WINDOW_S) seen.shift();
  const accepted = Object.fromEntries(Object.keys(counts).map((id) => [id, grown(id, "accepted", WINDOW_S)]));
  const total = Object.values(accepted).reduce((sum, number) => sum + number, 0);
  return Object.fromEntries(Object.entries(counts).map(([id, count]) => {
    const proposed = grown(id, "proposed", WINDOW_S);
    return [id, {
      share: proposed >= 10 ? accepted[id] / proposed : overall(count),
      isActive: grown(id, "proposed", 3) > 0,
      part: total ? accepted[id] / total : 0,
      rate: grown(id, "tokens", 4) / Math.max(1, now - first(4)[0]),
    }];
  }));
}

const overall = ({ proposed, accepted }) => (proposed ? accepted / proposed : null);

const first = (window_s) => seen.find(([at]) => at >= seen.at(-1)[0] - window_s);

/** How much a count grew in a window; nothing if it fell, as after a restart. */
function grown(id, name, window_s) {
  const [before, after] = [first(window_s)[1][id]?.[name], seen.at(-1)[1][id]?.[name]];
  return before === undefined || after === undefined ? 0 : Math.max(0, after - before);
}

function table(nodes, activity) {
  const rows = Object.entries(nodes).sort(([, a], [, b]) => order(a) - order(b));
  const links = Object.fromEntries(
    rows.flatMap(([, { state }]) => Object.entries(state.drafters ?? {})));
  byId("nodes").replaceChildren(...rows.map(([id, node]) => row(id, node, activity[id] ?? {}, links[id])));
  const target = rows.find(([, { state }]) => state.role === "target")?.[1];
  say(byId("plan"), target?.state.plan ? `Latest plan: ${target.state.plan}` : "");
}

const order = ({ state }) => (state.role === "target" ? 0 : 1);

function row(id, node, { share = null, rate = null }, link) {
  const isTarget = node.state.role === "target";
  const isHere = picture.isHere(node);
  const dot = element("span", { className: `dot ${isTarget ? "" : isHere ? hue(id) : "gone"}` });
  const about = [node.state.role ?? "drafter", shortModel(node.state.model)].filter(Boolean).join(", ");
  const why = node.reason ? [element("small", { textContent: node.reason })] : [];
  const speed = isTarget ? short(rate, " tokens/s") : short(link?.token_ms, " ms/token");
  return element("tr", { className: isHere ? "" : "gone" },
    element("td", {}, dot, id, element("small", { textContent: about })),
    element("td", {}, node.status, ...why),
    element("td", {}, isHere ? speed : "–"),
    element("td", {}, isHere && !isTarget ? percent(share) : "–"),
    element("td", {}, isHere && link ? short(link.rtt_ms, " ms") : "–"));
}
