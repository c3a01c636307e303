// Axes: ticks, and from values to pixels.
/** Ticks of a linear axis: four or so round numbers. */
function roundTicks(low, high, count = 4) {
  const raw = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((by) => by * unit).find((size) => size >= raw * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step)
    ticks.push(Number(at.toPrecision(12)));
  return ticks;
}

/** Ticks of a logarithmic axis: as many of a decade's as leave six or so. */
function logTicks(low, high) {
  for (const subs of [[1, 1.5, 2, 3, 4, 6, 8], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += 1) {
      for (const sub of subs)
        if (sub * 10 ** e >= low * 0.999 && sub * 10 ** e <= high * 1.001) ticks.push(sub * 10 ** e);
    }
    if (ticks.length <= 7) return ticks.map((tick) => Number(tick.toPrecision(6)));
  }
  return [low, high];
}

/** From values to pixels. `kind` is linear, log, or steps (values as ticks, evenly apart by their logarithm). */
function scale(kind, values, from, to, { zero = false, include = [] } = {}) {
  const all = [...values, ...include];
  let low = Math.min(...all);
  let high = Math.max(...all);
  if (kind === "linear") {
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    const floor = zero && low >= 0;
    low = floor ? 0 : low - pad;
    high += pad;
  } else {
    const pad = low === high ? 1.5 : (high / low) ** 0.06;
    low /= pad;
    high *= pad;
  }
  const share = kind === "linear" ? (v) => (v - low) / (high - low) : (v) => Math.log(v / low) / Math.log(high / low);
  const at = (v) => from + share(v) * (to - from);
  if (kind === "steps") return { at, ticks: distinct(values).sort((a, b) => a - b) };
  const even = roundTicks(low, high, Math.max(3, Math.abs(to - from) / 90));
  const decades = kind === "log" ? logTicks(low, high) : [];
  return { at, ticks: decades.length > 2 ? decades : even }; // a narrow logarithmic axis is nearly even
}
