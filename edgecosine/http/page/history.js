// Rates from samples [seconds, tokens, rounds, draft tokens, accepted tokens], and their sparklines.

import { byId, percent, say, short, svg } from "./dom.js";

const SPAN_S = 300;
const SHORTEST_SPAN_S = 60;
const samples = [];

/** Add samples that are newer than those there are. */
export function add(newer) {
  for (const sample of newer) {
    if (samples.length && sample[0] < samples.at(-1)[0] + 0.2) continue;
    // Counts that fall back belong to another process.
    if (samples.length && sample[1] < samples.at(-1)[1]) samples.length = 0;
    samples.push(sample);
  }
  while (samples.length && samples[0][0] < samples.at(-1)[0] - SPAN_S) samples.shift();
}

/** The quotient of two counts' growth in the seconds before each sample; null where nothing grew. */
function ratios(of, over, window_s) {
  let first = 0;
  return samples.map((sample) => {
    while (samples[first][0] < sample[0] - window_s) first += 1;
    const grown = sample[over] - samples[first][over];
    return [sample[0], grown > 0 ? (sample[of] - samples[first][of]) / grown : null];
  });
}

/** Draw all figures anew. */
export function draw() {
  if (!samples.length) return;
  const speed = ratios(1, 0, 5).map(([at, rate]) => [at, rate ?? 0]);
  show("speed", speed, (value) => short(value), "tokens per second", null);
  show("accepted", ratios(4, 3, 15), percent, "of draft tokens accepted", 1);
  show("per-pass", ratios(1, 2, 15), (value) => short(value), "tokens per pass", null);
}

function show(id, series, spell, unit, highest) {
  const figure = byId(id);
  const values = series.map(([, value]) => value).filter((value) => value !== null);
  const now = series.at(-1)[1];
  say(figure.querySelector("strong"), spell(now ?? values.at(-1) ?? null));
  const span = Math.min(SPAN_S, Math.max(SHORTEST_SPAN_S, series.at(-1)[0] - series[0][0]));
  const top = highest ?? Math.max(1, ...values) * 1.1;
  const picture = figure.querySelector("svg");
  picture.setAttribute("viewBox", `0 0 ${span} 100`);
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("role", "img");
  const most = values.length ? spell(Math.max(...values)) : "–";
  picture.setAttribute("aria-label", `Last ${Math.round(span)} seconds, at most ${most} ${unit}`);
  const lines = stretches(series, top, span);
  picture.replaceChildren(
    svg("path", { class: "spark-ground", d: `M0 96H${span}` }),
    svg("path", { class: "spark-area", d: lines.map(area).join("") }),
    svg("path", { class: "spark-line", d: lines.map((points) => `M${trace(points)}`).join("") }),
  );
}

/** Stretches of a series without gaps, as points of a picture that is 100 high. */
function stretches(series, top, span) {
  const end = series.at(-1)[0];
  const found = [[]];
  for (const [at, value] of series) {
    if (value === null) found.push([]);
    else found.at(-1).push([span + at - end, 96 - (92 * Math.min(value, top)) / top]);
  }
  return found.filter((points) => points.length > 1);
}

const trace = (points) => points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

const area = (points) => `M${points[0][0].toFixed(1)} 100L${trace(points)}L${points.at(-1)[0].toFixed(1)} 100Z`;
