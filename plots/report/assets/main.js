// Puts the page together, and draws it again when filters, width or theme change.
const sections = [headline, speed, stages, traces, quality, trades, compared, table, missing].filter(Boolean);
sections[0].section.classList.add("first");

if (page.comparisons.length) {  // two runs of the same cases: what the page is for
  const [first, ...others] = byId("sections").children;
  first.after(others.find((link) => link.hash === "#compare"));
  sections[0].section.after(compared.section);
}

function drawAll() {
  for (const { redraw } of sections) redraw();
}

function themeButton() {
  const root = document.documentElement;
  const button = byId("theme");
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wanted.matches);
  const say = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    say();
  });
  wanted.addEventListener("change", say);
  say();
}

about();
readAddress();
showFilters();
themeButton();
onFilter(drawAll);
drawAll();

let width = document.documentElement.clientWidth;
let waiting = 0;
addEventListener("resize", () => {
  if (document.documentElement.clientWidth === width) return;
  width = document.documentElement.clientWidth;
  clearTimeout(waiting);
  waiting = setTimeout(drawAll, 120);
});
