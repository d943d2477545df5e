// <fs-player>: shows one of its figures at a time. Without this script they all stand there.
class Player extends HTMLElement {
  connectedCallback() {
    const steps = [...this.querySelectorAll("figure")];
    if (steps.length < 2 || this.querySelector("input")) return;
    const bar = document.createElement("div");
    bar.className = "fs-controls";
    bar.innerHTML =
      '<button type="button" aria-label="Previous step">◀</button>' +
      `<input type="range" min="1" max="${steps.length}" value="1" aria-label="Step">` +
      '<button type="button" aria-label="Next step">▶</button>' +
      '<output></output>';
    const [back, forth] = bar.querySelectorAll("button");
    const slider = bar.querySelector("input");
    const place = bar.querySelector("output");
    const show = (n) => {
      n = Math.min(Math.max(n, 1), steps.length);
      slider.value = n;
      slider.setAttribute("aria-valuetext", `${n}: ${steps[n - 1].textContent.trim()}`);
      place.textContent = `${n} / ${steps.length}`;
      back.disabled = n === 1;
      forth.disabled = n === steps.length;
      steps.forEach((step, i) => { step.hidden = i !== n - 1; });
    };
    back.addEventListener("click", () => show(+slider.value - 1));
    forth.addEventListener("click", () => show(+slider.value + 1));
    slider.addEventListener("input", () => show(+slider.value));
    this.setAttribute("role", "group");
    this.append(bar);
    show(1);
  }
}
// Defined late, so that each player finds its figures parsed.
document.addEventListener("DOMContentLoaded", () => customElements.define("fs-player", Player));
