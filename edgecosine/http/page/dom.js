// Elements, numbers and colours, for all parts of the page.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** An HTML element; `options` are its properties, children are elements or texts. */
export function element(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}

/** An SVG element with attributes. */
export function svg(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** Replace an element's text, if it differs: a reader of the screen is told of changes only. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** A number with a few digits, or a dash. */
export function short(number, unit = "") {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  const digits = Math.abs(number) >= 100 ? 0 : 1;
  return number.toFixed(digits) + unit;
}

/** A share of 1 as per cent, or a dash. */
export const percent = (share) => short(share === null ? null : 100 * share).replace(/\.\d$/, "") + (
  share === null || !Number.isFinite(share) ? "" : " %");

/** A model's name without the target that it drafts for. */
export const shortModel = (name = "") => name.slice(name.lastIndexOf("/") + 1);

const HUES = 8;
const known = new Map();

/** The class of a drafter's colour, the same for as long as the page is open. */
export function hue(name) {
  if (!known.has(name)) known.set(name, known.size % HUES);
  return `h${known.get(name)}`;
}
