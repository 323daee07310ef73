// A searchable choice of viewers (the combobox pattern): type, arrows, Enter; Escape puts the old name back.

import { element } from "./dom.js";

const TYPING_PAUSE_MS = 120;

export class Picker {
  constructor(input, list, { search, onPick, onProblem }) {
    Object.assign(this, { input, list, search, onPick, onProblem, options: [], at: -1, asked: 0 });
    input.addEventListener("focus", () => { input.select(); this.#look(""); });
    input.addEventListener("input", () => { clearTimeout(this.timer); this.timer = setTimeout(() => this.#look(input.value.trim()), TYPING_PAUSE_MS); });
    input.addEventListener("keydown", (event) => this.#keys(event));
    input.addEventListener("blur", () => this.#close());
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // the input keeps the focus
    list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#pick(Number(option.dataset.at));
    });
  }

  set(summary) {
    this.chosen = summary;
    this.input.value = summary.name;
  }

  async #look(q) {
    const asked = ++this.asked;
    try {
      const found = await this.search(q);
      if (asked !== this.asked || document.activeElement !== this.input) return;
      this.options = found;
      this.#draw();
    } catch (error) {
      this.onProblem(error);
    }
  }

  #draw() {
    this.at = this.options.length ? 0 : -1;
    this.list.replaceChildren(...this.options.map((viewer, index) =>
      element("li", { role: "option", id: `viewer-option-${index}`, "data-at": index }, element("b", { text: viewer.name }), element("small", { text: viewer.taste }))));
    if (!this.options.length) this.list.append(element("li", { className: "none", text: "Nobody by that name or taste." }));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.#mark();
  }

  #mark() {
    [...this.list.children].forEach((node, index) => node.role === "option" && node.setAttribute("aria-selected", index === this.at));
    if (this.at >= 0) {
      this.input.setAttribute("aria-activedescendant", `viewer-option-${this.at}`);
      this.list.children[this.at].scrollIntoView({ block: "nearest" });
    } else this.input.removeAttribute("aria-activedescendant");
  }

  #keys(event) {
    const open = !this.list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) return this.#look(this.input.value === this.chosen?.name ? "" : this.input.value.trim());
      const n = this.options.length;
      if (n) this.at = (this.at + (event.key === "ArrowDown" ? 1 : n - 1)) % n;
      this.#mark();
    } else if (event.key === "Enter" && open && this.at >= 0) {
      event.preventDefault();
      this.#pick(this.at);
    } else if (event.key === "Escape") this.#close();
  }

  #pick(at) {
    const viewer = this.options[at];
    this.set(viewer);
    this.#close();
    this.onPick(viewer.viewer);
  }

  #close() {
    clearTimeout(this.timer);
    this.asked += 1;
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    if (this.chosen) this.input.value = this.chosen.name;
  }
}
