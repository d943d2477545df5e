// A page printed at night would be light words on white paper: paper has the colours of day.
// Chromium says so by the media query, Firefox, which prints a copy, by events.
{
  const root = document.documentElement;
  let before;
  const toDay = () => { before ??= root.dataset.theme; root.dataset.theme = "light"; };
  const back = () => { if (before) root.dataset.theme = before; before = undefined; };
  matchMedia("print").addEventListener("change", ({ matches }) => matches ? toDay() : back());
  addEventListener("beforeprint", toDay);
  addEventListener("afterprint", back);
}
