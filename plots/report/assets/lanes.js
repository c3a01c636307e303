// Lines to choose from, and values side by side.
/** A legend whose entries switch what is drawn: those shown at first, and the others in a list that opens. */
function switches(name, entries, isFirst, isOn, flip) {
  const button = (entry) =>
    el(
      "button",
      {
        type: "button",
        "data-key": `${name}|${entry.key}`,
        "aria-pressed": String(isOn(entry.key)),
        on: { click: () => flip(entry.key) },
      },
      swatch(entry.look),
      entry.name,
    );
  const group = (some) =>
    el("div", { class: "legend", role: "group", "aria-label": `Lines of ${name}` }, some.map(button));
  const others = entries.filter((entry) => !isFirst(entry.key));
  const on = others.filter((entry) => isOn(entry.key)).length;
  const more = others.length
    ? el(
        "details",
        { class: "more", "data-key": name },
        el("summary", {}, `${counted(others.length, "more line")}${on ? `, ${on} shown` : ""}`),
        group(others),
      )
    : null;
  return [group(entries.filter((entry) => isFirst(entry.key))), more];
}

/** Values side by side where there is a single context: a lane a line, its name above its marker. */
function lanes({ title, about, width, y, series, base = null }) {
  const drawn = series.flatMap((one) => one.points.map((point) => ({ ...point, name: one.name, look: one.look })));
  if (!drawn.length) return null;
  drawn.sort((a, b) => b.y - a.y);
  const height = drawn.length * 32 + 40;
  const ends = drawn.flatMap((p) => [p.y, p.low, p.high]).filter(given);
  const across = scale(y.kind, ends, 8, width - 12, { ...y, include: base ? [base.y] : [] });
  const chart = svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const foot = height - 34;
  for (const tick of across.ticks) {
    chart.append(svg("path", { class: "rule", d: `M${across.at(tick).toFixed(1)} 0V${foot}` }));
    const anchor = across.at(tick) > width - 24 ? "end" : across.at(tick) < 24 ? "start" : "middle";
    chart.append(
      svg("text", { class: "soft", x: across.at(tick), y: foot + 15, "text-anchor": anchor }, (y.tick || y.form)(tick)),
    );
  }
  chart.append(
    svg("path", { class: "edge", d: `M0 ${foot}H${width}` }),
    svg("text", { class: "soft", x: width / 2, y: height - 4, "text-anchor": "middle" }, y.label),
  );
  if (base) chart.append(svg("path", { class: "base", d: `M${across.at(base.y).toFixed(1)} 0V${foot}` }));
  const spots = drawn.map((p, lane) => {
    const [px, py] = [across.at(p.y), lane * 32 + 22];
    const css = colours(p.look);
    chart.append(svg("text", { class: "halo", x: 0, y: py - 9 }, `${p.name}: ${y.form(p.y)}`));
    if (given(p.low) && given(p.high)) {
      const [left, right] = [across.at(p.low), across.at(p.high)];
      chart.append(
        svg("path", {
          class: "own whisker",
          css,
          d: `M${left} ${py - 3}v6M${left} ${py}H${right}M${right} ${py - 3}v6`,
        }),
      );
    }
    chart.append(marker(p.look, px, py, { hollow: p.hollow }));
    return { x: px, y: py, lines: p.lines };
  });
  chart.setAttribute(
    "aria-label",
    `Chart. ${title}. ${about || ""} ${y.label}: ${drawn.map((p) => `${p.name} ${y.form(p.y)}`).join("; ")}.`,
  );
  explore(chart, spots);
  return el("figure", {}, el("figcaption", {}, title, about ? el("small", { class: "soft" }, about) : null), chart);
}
