// The figures of an answer, and its rounds as a strip of bars with each one's plan.

import { element, hue, short, svg } from "./dom.js";

const BAR = 4;
const HEIGHT = 26;

/** The figures of an answer from its last chunk; details on hover and on focus. */
export function footer(facts, firstMs, finish) {
  const { usage, metrics, edgecosine } = facts;
  const speculation = metrics.speculative_decoding;
  const rounds = (edgecosine.rounds ?? []).filter((round) => round.plan);
  const tip = element("div", { className: "tip", id: `tip-${facts.id}` }, list([
    ["Plans", plans(rounds)],
    ["Reason", [...rounds].reverse().find((round) => round.num_nodes)?.plan ?? edgecosine.plan],
    ["Drafted by", shares(edgecosine.drafters)],
    ["Drafts", `${speculation.num_accepted_draft_tokens} of ${speculation.num_draft_tokens} tokens accepted`],
    ["Passes", `${speculation.num_spec_steps}, ${edgecosine.speculative_rounds} of them with drafts`],
    ["First text", `${short(firstMs)} ms`],
    ["Queue, prefill", `${short(1e3 * edgecosine.queue_s)} ms, ${short(1e3 * edgecosine.prefill_s)} ms`],
    ["End", finish === "length" ? "the longest answer was reached" : finish],
  ]));
  tip.setAttribute("role", "tooltip");
  const speed = (usage.completion_tokens - 1) / edgecosine.decode_s;
  const button = element("button", {
    type: "button",
    textContent: [
      `${usage.completion_tokens} tokens`, `${short(speed)} tokens/s`,
      `${short(speculation.mean_acceptance_length)} per pass`,
    ].join(" · "),
  });
  button.setAttribute("aria-describedby", tip.id);
  return element("div", {}, element("div", { className: "facts" }, button, tip), strip(rounds));
}

/** A bar for each round, as high as its tokens, in the colour of the drafter that the plan named. */
function strip(rounds) {
  const most = Math.max(4, ...rounds.map((round) => 1 + round.num_accepted));
  const width = Math.max(1, rounds.length * BAR);
  const picture = svg("svg", {
    class: "rounds", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img",
    preserveAspectRatio: "none",
    "aria-label": `${rounds.length} rounds`,
  });
  rounds.forEach((round, i) => {
    const height = (HEIGHT * (1 + round.num_accepted)) / most;
    const drafter = round.num_nodes ? round.drafts.find((draft) => draft.num_tokens)?.drafter : undefined;
    const bar = svg("rect", {
      class: drafter ? hue(drafter) : "gone", x: i * BAR, y: HEIGHT - height, width: BAR - 1, height, rx: 1,
    });
    const tokens = 1 + round.num_accepted;
    bar.append(svg("title", {}, `round ${i + 1}: ${tokens} tokens of ${round.num_nodes} guesses\n${round.plan}`));
    picture.append(bar);
  });
  return picture;
}

function list(pairs) {
  return element("dl", {}, ...pairs.flatMap(([name, text]) => [
    element("dt", { textContent: name }), element("dd", { textContent: text || "–" }),
  ]));
}

/** How often each draft length was planned. */
function plans(rounds) {
  const counts = new Map();
  for (const { plan } of rounds) {
    const length = plan.split(":")[0];
    counts.set(length, (counts.get(length) ?? 0) + 1);
  }
  const sorted = [...counts].sort(([, a], [, b]) => b - a).slice(0, 6);
  return sorted.map(([length, number]) => `${length} ${number}×`).join(", ");
}

function shares(drafters) {
  const texts = Object.entries(drafters)
    .filter(([, share]) => share.proposed)
    .map(([name, share]) => `${name}: ${share.accepted} of ${share.proposed}`);
  return texts.join(", ") || "none";
}
