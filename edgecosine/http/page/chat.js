// The chat: streams answers and colours their text by origin.

import { footer } from "./answer.js";
import { byId, element, hue, percent, say } from "./dom.js";
import { events } from "./events.js";

const conversation = [];
const guessed = new Map();
let model = "";
let running = null;

/** Use the first of the served models. */
export function useModels(models) {
  [model = ""] = models;
  say(byId("model"), model);
}

/** Wire the controls. */
export function start() {
  const prompt = byId("prompt");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else if (prompt.value.trim()) ask(prompt.value.trim());
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running) byId("composer").requestSubmit();
  });
  prompt.addEventListener("input", grow);
  byId("clear").addEventListener("click", clear);
  byId("colours").addEventListener("click", ({ currentTarget }) => {
    const isOn = currentTarget.getAttribute("aria-pressed") !== "true";
    currentTarget.setAttribute("aria-pressed", String(isOn));
    byId("messages").classList.toggle("coloured", isOn);
    byId("legend").hidden = !isOn;
  });
}

function grow() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function clear() {
  running?.abort();
  conversation.length = 0;
  guessed.clear();
  byId("messages").replaceChildren(byId("welcome") ?? "");
  byId("legend").replaceChildren();
  byId("prompt").focus();
}

async function ask(text) {
  byId("prompt").value = "";
  grow();
  byId("welcome")?.remove();
  conversation.push({ role: "user", content: text });
  const answer = element("article", { className: "answer" }, element("div", { className: "text" }));
  answer.setAttribute("aria-busy", "true");
  answer.setAttribute("aria-label", "Answer");
  byId("messages").append(element("p", { className: "user", textContent: text }), answer);
  follow(true);
  running = new AbortController();
  toggle(true);
  try {
    await stream(answer, running.signal);
    say(byId("said"), "The answer is complete.");
  } catch (error) {
    const isStopped = error.name === "AbortError";
    const note = isStopped ? "Stopped." : error.message;
    answer.append(element("p", { className: isStopped ? "model" : "failure", textContent: note }));
    say(byId("said"), note);
  } finally {
    running = null;
    answer.setAttribute("aria-busy", "false");
    conversation.push({ role: "assistant", content: answer.firstChild.textContent });
    toggle(false);
  }
}

function toggle(isBusy) {
  say(byId("send"), isBusy ? "Stop" : "Send");
  byId("send").classList.toggle("stop", isBusy);
}

async function stream(answer, signal) {
  const begun = performance.now();
  let firstMs = null;
  let facts = null;
  let finish = "";
  for await (const chunk of events("/v1/chat/completions", { method: "POST", body: body(), signal })) {
    const [choice] = chunk.choices;
    if (choice?.delta?.content) {
      firstMs ??= performance.now() - begun;
      write(answer.firstChild, choice.delta.content, choice.origins ?? []);
      follow();
    }
    finish = choice?.finish_reason ?? finish;
    if (chunk.usage) facts = chunk;
  }
  if (facts) answer.append(footer(facts, firstMs, finish));
  legend();
  follow();
}

function body() {
  return JSON.stringify({
    model: model || undefined,
    messages: conversation,
    stream: true,
    stream_options: { include_usage: true },
    origins: true,
    trace: true,
    temperature: Number(byId("temperature").value) || 0,
    max_tokens: Number(byId("length").value) || 256,
  });
}

/** Append text in runs of one origin each; the server counts characters as code points. */
function write(target, text, origins) {
  const characters = Array.from(text);
  let at = 0;
  for (const [length, name] of [...origins, [characters.length, ""]]) {
    const piece = characters.slice(at, at + length).join("");
    at += length;
    if (!piece) continue;
    guessed.set(name, (guessed.get(name) ?? 0) + piece.length);
    const last = target.lastChild;
    if (last?.dataset.by === name) {
      last.textContent += piece;
      continue;
    }
    // The space before a word is not coloured.
    const word = name ? piece.trimStart() : piece;
    if (word !== piece) target.append(span(piece.slice(0, piece.length - word.length), ""));
    if (word) target.append(span(word, name));
  }
}

function span(text, name) {
  const made = element("span", { textContent: text });
  made.dataset.by = name;
  if (!name) return made;
  made.className = `guess ${hue(name.split("+")[0])}`;
  made.title = `guessed by ${name.split("+").join(" and ")}`;
  return made;
}

/** Stay at the end of the conversation, unless its reader has scrolled up. */
function follow(isForced = false) {
  const messages = byId("messages");
  const left = messages.scrollHeight - messages.scrollTop - messages.clientHeight;
  if (isForced || left < 160) messages.scrollTop = messages.scrollHeight;
}

/** The colours, and how much of the conversation each name guessed. */
function legend() {
  const total = [...guessed.values()].reduce((sum, number) => sum + number, 0);
  const entries = [...guessed].sort(([, a], [, b]) => b - a).slice(0, 6);
  byId("legend").replaceChildren(...entries.map(([name, number]) => {
    const first = name.split("+")[0];
    const dot = element("span", { className: `dot ${name ? hue(first) : "gone"}` });
    return element("span", {}, dot, `${name ? name.split("+").join(" and ") : "target"} ${percent(number / total)}`);
  }));
}
