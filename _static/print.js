// A page printed at night would be light words on white paper: paper has the colours of day.
{
  const root = document.documentElement;
  let before;
  matchMedia("print").addEventListener("change", ({ matches }) => {
    if (matches) before = root.dataset.theme;
    root.dataset.theme = matches ? "light" : before;
  });
}
