// Tonight's row and last night's ladder. When the row is rewritten, tiles keep their elements and slide to their new
// places (FLIP: measure first, change, measure last, play the difference).

import { calm, element, length, svg, words } from "./dom.js";
import { poster } from "./poster.js";

export const SHOWN = 12;
const SLIDE = { duration: 760, easing: "cubic-bezier(0.22, 0.9, 0.24, 1)" };

const places = (row) => new Map(row.tiles.map((tile, index) => [tile.item_id, index + 1]));

function shift(before, now) {
  if (before === undefined) return ["new", "New", "new tonight"];
  if (before === now) return ["", "", "same place as last night"];
  const by = Math.abs(before - now);
  return before > now ? ["up", `▲ ${by}`, `up ${by} since last night`] : ["down", `▼ ${by}`, `down ${by} since last night`];
}

const shiftMark = ([kind, mark, said]) =>
  element("span", { className: `shift ${kind}` }, element("span", { "aria-hidden": "true", text: mark }), element("span", { className: "visually-hidden", text: said }));

export class Row {
  constructor(list, { onPlay, onSkip, onWhy }) {
    this.list = list;
    this.tiles = new Map();
    this.order = [];
    this.actions = { onPlay, onSkip, onWhy };
    list.addEventListener("keydown", (event) => this.#arrows(event));
  }

  clear() {
    this.tiles.clear();
    this.order = [];
    this.list.replaceChildren();
  }

  // Returns what changed: { moved, fresh, gone } as lists of titles.
  show(row, lastNight) {
    const shown = row.tiles.slice(0, SHOWN);
    const before = places(lastNight);
    const first = new Map([...this.tiles].map(([id, node]) => [id, node.getBoundingClientRect()]));
    const focusedAt = this.order.findIndex((id) => this.tiles.get(id).contains(document.activeElement));
    const focusedClass = document.activeElement?.className;
    const earlier = new Map(this.order.map((id, index) => [id, index]));
    const changes = { moved: [], fresh: [], gone: [], first: shown[0]?.title };
    const staying = new Set(shown.map((tile) => tile.item_id));
    for (const [id, node] of [...this.tiles]) {
      if (staying.has(id)) continue;
      changes.gone.push(id);
      this.tiles.delete(id);
      this.#leave(node, first.get(id));
    }
    const nodes = shown.map((tile, index) => {
      let node = this.tiles.get(tile.item_id);
      if (!node) {
        node = this.#make(tile);
        this.tiles.set(tile.item_id, node);
        if (this.order.length) changes.fresh.push(tile.title);
      } else if (earlier.get(tile.item_id) !== index) changes.moved.push(tile.title);
      this.#caption(node, tile, index + 1, before.get(tile.item_id));
      return node;
    });
    if (nodes.length) this.list.replaceChildren(...nodes, ...this.list.querySelectorAll(".leaving"));
    else this.list.replaceChildren(element("li", { className: "tile empty", text: "No row yet. It is written at this viewer’s first play." }));
    this.order = shown.map((tile) => tile.item_id);
    nodes.forEach((node, index) => this.#arrive(node, first.get(this.order[index]), index));
    if (focusedAt >= 0 && !this.list.contains(document.activeElement)) {
      this.#button(Math.min(focusedAt, this.order.length - 1), focusedClass)?.focus({ preventScroll: true });
    } else if (focusedAt >= 0) document.activeElement.focus({ preventScroll: true });
    return changes;
  }

  sending(id, on) {
    this.tiles.get(id)?.classList.toggle("sending", on);
  }

  #make(tile) {
    const play = element("button", { className: "tile-play", type: "button", "aria-label": `Play ${tile.title}` }, poster(tile),
      element("span", { className: "glyph", "aria-hidden": "true" }, svg("svg", { viewBox: "0 0 20 20" }, svg("path", { d: "M6.5 4v12l10-6z" }))));
    play.addEventListener("click", () => this.actions.onPlay(tile));
    const why = element("button", { className: "tile-why", type: "button", "aria-label": `Why ${tile.title}?`, "aria-haspopup": "dialog", text: "Why?" });
    why.addEventListener("click", () => this.actions.onWhy(tile));
    const skip = element("button", { className: "tile-skip", type: "button", "aria-label": `Skip ${tile.title} after a moment`, text: "Skip" });
    skip.addEventListener("click", () => this.actions.onSkip(tile));
    return element("li", { className: "tile", "data-item": tile.item_id, title: `${tile.title}\n${tile.topics.map(words).join(" · ")}\n${length(tile.duration_ms)}` }, play,
      element("div", { className: "tile-foot" }, element("span", { className: "place" }), element("span", { className: "tile-actions" }, why, skip)));
  }

  #caption(node, tile, place, before) {
    node.querySelector(".place").replaceChildren(element("span", { className: "rank", text: place }), " ", shiftMark(shift(before, place)));
    node.dataset.place = place;
  }

  #arrive(node, from, index) {
    if (calm() || document.hidden) return;
    if (!from) {
      node.animate([{ opacity: 0, transform: "translateY(18px) scale(0.94)" }, { opacity: 1, transform: "none" }], { ...SLIDE, duration: 620, delay: 60 + index * 18, fill: "backwards" });
      return;
    }
    const to = node.getBoundingClientRect();
    const [dx, dy] = [from.left - to.left, from.top - to.top];
    if (!dx && !dy) return;
    // The further it travels the higher it lies, so that climbers pass over those who make room.
    node.style.zIndex = dy > 0 || dx > 0 ? 3 : 1;
    const slide = node.animate([{ transform: `translate(${dx}px, ${dy}px)` }, { transform: "none" }], SLIDE);
    slide.finished.then(() => (node.style.zIndex = ""), () => {});
  }

  #leave(node, from) {
    if (calm() || document.hidden || !from) return node.remove();
    const frame = this.list.getBoundingClientRect();
    node.classList.add("leaving");
    node.inert = true;
    Object.assign(node.style, { left: `${from.left - frame.left}px`, top: `${from.top - frame.top}px`, width: `${from.width}px` });
    node.animate([{ opacity: 1 }, { opacity: 0, transform: "translateY(26px) scale(0.9)" }], { duration: 420, easing: "ease-in", fill: "forwards" })
      .finished.then(() => node.remove(), () => node.remove());
  }

  #button(index, className) {
    const node = this.tiles.get(this.order[index]);
    return node?.querySelector(className ? `.${className.split(" ")[0]}` : ".tile-play") ?? node?.querySelector(".tile-play");
  }

  // Arrow keys walk over the posters; Tab still reaches everything.
  #arrows(event) {
    const at = this.order.findIndex((id) => this.tiles.get(id).querySelector(".tile-play") === event.target);
    if (at < 0) return;
    const columns = getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: this.order.length - 1 - at }[event.key];
    if (step === undefined || !this.order[at + step]) return;
    event.preventDefault();
    this.#button(at + step).focus();
  }
}

export function showLadder(list, lastNight, live, watched) {
  const now = places(live);
  list.replaceChildren(...lastNight.tiles.slice(0, SHOWN).map((tile, index) => {
    const place = now.get(tile.item_id);
    let mark;
    if (watched.has(tile.item_id) && place === undefined) mark = ["", "watched", "watched since"];
    else if (place === undefined) mark = ["down", "gone", "no longer in the row"];
    else if (place === index + 1) mark = ["", "same", "in the same place"];
    else mark = [place <= index ? "up" : "down", `${place <= index ? "▲" : "▼"} now ${place}`, `now number ${place}`];
    return element("li", { className: place === undefined ? "gone" : "", "data-item": tile.item_id },
      element("span", { className: "rank", text: index + 1 }), poster(tile, { mini: true }),
      element("span", { className: "name", text: tile.title }), shiftMark(mark));
  }));
}
