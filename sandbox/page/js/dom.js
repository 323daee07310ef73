// Small helpers: elements without markup in strings, so that no title can become HTML.

export function element(tag, { className, text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export const number = (value) => Math.round(value).toLocaleString("en-GB");

// 38 → "38", 4.26 → "4.3": two figures are enough for a stopwatch.
export const milliseconds = (ms) => (ms < 9.95 ? ms.toFixed(1) : number(ms));

export function length(ms) {
  if (!ms) return "";
  const minutes = Math.round(ms / 60000);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")}`;
}

export const words = (name) => name.replaceAll("-", " ");
