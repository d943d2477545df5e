// <fs-explorer>: one recorded case at a time, chosen from lists. The texts were written by the
// library and are only shown here. Without this script, the first case stands there.

const BARS = ["recorded: median, with its quartiles", "the estimate"];

function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

class Explorer extends HTMLElement {
  connectedCallback() {
    const script = this.querySelector("script");
    if (!script) return;
    const { choices, columns, cases } = JSON.parse(script.textContent);
    this.columns = columns;
    this.cases = cases;
    this.chosen = [...cases[0][0]];
    this.lists = choices.map((name, place) => this.list(name, place));
    this.says = element("p", { role: "status", class: "fs-says" });
    this.view = element("div");
    const named = this.lists.map((list) =>
      element("div", {}, element("label", { for: list.id }, list.name), list));
    this.replaceChildren(element("div", { class: "fs-choices" }, ...named), this.says, this.view);
    this.show();
  }

  list(name, place) {
    const list = element("select", { name, id: `fs-${name}` });
    list.addEventListener("change", () => {
      this.chosen[place] = JSON.parse(list.value);
      this.show();
    });
    return list;
  }

  // Each list offers what has been recorded with the choices of the lists before it. A choice
  // that is gone gives way to the first there is.
  show() {
    let left = this.cases;
    this.lists.forEach((list, place) => {
      const offered = [...new Set(left.map(([values]) => values[place]))];
      if (!offered.includes(this.chosen[place])) this.chosen[place] = offered[0];
      list.replaceChildren(...offered.map((value) =>
        element("option", { value: JSON.stringify(value) }, String(value))));
      list.value = JSON.stringify(this.chosen[place]);
      left = left.filter(([values]) => values[place] === this.chosen[place]);
    });
    const [, summary, rows] = left[0];
    this.says.textContent = summary;
    this.view.replaceChildren(this.bars(rows), this.table(rows));
  }

  // Pictures for the eye; the table says the same.
  bars(rows) {
    const most = Math.max(...rows.flatMap(([, bar]) => bar));
    const share = (us) => `${(100 * us) / most}%`;
    const lines = rows.map(([[name], [low, middle, high, said]]) => {
      const track = element("div", { class: "fs-track" });
      const piece = (kind, left, width) =>
        track.append(element("i", { class: kind, style: `left:${left};width:${width}` }));
      piece("fs-recorded", "0", share(middle));
      piece("fs-quartiles", share(low), share(high - low));
      piece("fs-said", "0", share(said));
      return element("div", { class: "fs-bar" }, element("span", {}, name), track);
    });
    const key = element("p", { class: "fs-key" });
    key.append(element("i", { class: "fs-recorded" }), BARS[0], element("i", { class: "fs-said" }), BARS[1]);
    return element("div", { "aria-hidden": "true" }, ...lines, key);
  }

  table(rows) {
    const head = this.columns.map((name) => element("th", { scope: "col" }, name));
    const body = rows.map(([[name, ...cells]]) =>
      element("tr", {}, element("th", { scope: "row" }, name),
        ...cells.map((cell) => element("td", {}, cell))));
    const table = element("table", {},
      element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
    // It may be wider than a phone; then it is scrolled, by keyboard too.
    return element("div", { class: "fs-wide", tabindex: "0", role: "region", "aria-label": "Numbers of this case" }, table);
  }
}

document.addEventListener("DOMContentLoaded", () => customElements.define("fs-explorer", Explorer));
