/** Charts as SVG text: no dependency, the same bytes for the same numbers, legible on light and dark pages. */

export interface Series {
  name: string;
  points: readonly (readonly [number, number])[];
  /** lower and upper at the same x, drawn as a band */
  band?: readonly (readonly [number, number, number])[];
  dashed?: boolean;
  /** dots alone, of these radii in pixels (default: a line) */
  dots?: readonly number[];
}

export interface Axis {
  label: string;
  min: number;
  max: number;
  /** places to label; default five, evenly */
  ticks?: readonly number[];
  /** default: as it is */
  format?: (value: number) => string;
}

export interface LineChart {
  title: string;
  x: Axis;
  y: Axis;
  series: readonly Series[];
}

/** Colours that people with any colour vision tell apart (Okabe and Ito). */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00', '#7f7f7f', '#000000'];
const WIDTH = 640;
const HEIGHT = 360;
const MARGIN = { left: 64, right: 16, top: 36, bottom: 48 };
const LEGEND_LINE = 18;

const escape = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
const px = (value: number): string => value.toFixed(1).replace(/\.0$/, '');

/** One chart, or several below each other in one file. */
export function svg(charts: readonly LineChart[]): string {
  let top = 0;
  const parts = charts.map((chart) => {
    const drawn = draw(chart, top);
    top += drawn.height;
    return drawn.text;
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${top}" width="${WIDTH}" height="${top}" ` +
    `font-family="system-ui, sans-serif" font-size="12" role="img">\n<rect width="100%" height="100%" fill="#fff"/>\n${parts.join('\n')}\n</svg>\n`
  );
}

function draw(chart: LineChart, top: number): { text: string; height: number } {
  const { x, y, series } = chart;
  const [left, right] = [MARGIN.left, WIDTH - MARGIN.right];
  const [upper, lower] = [top + MARGIN.top, top + HEIGHT - MARGIN.bottom];
  const at = (axis: Axis, from: number, to: number) => (value: number) =>
    from + ((Math.min(axis.max, Math.max(axis.min, value)) - axis.min) / (axis.max - axis.min || 1)) * (to - from);
  const [sx, sy] = [at(x, left, right), at(y, lower, upper)];
  const out = [`<text x="${left}" y="${top + 22}" font-size="14" font-weight="600">${escape(chart.title)}</text>`];
  const ticks = (axis: Axis): readonly number[] =>
    axis.ticks ?? Array.from({ length: 5 }, (_, i) => axis.min + (i / 4) * (axis.max - axis.min));
  const say = (axis: Axis, value: number): string => escape((axis.format ?? ((v: number) => String(Number(v.toPrecision(3)))))(value));
  for (const value of ticks(y)) {
    out.push(`<line x1="${left}" x2="${right}" y1="${px(sy(value))}" y2="${px(sy(value))}" stroke="#ddd"/>`);
    out.push(`<text x="${left - 6}" y="${px(sy(value) + 4)}" text-anchor="end">${say(y, value)}</text>`);
  }
  for (const value of ticks(x)) {
    out.push(`<line x1="${px(sx(value))}" x2="${px(sx(value))}" y1="${lower}" y2="${lower + 4}" stroke="#555"/>`);
    out.push(`<text x="${px(sx(value))}" y="${lower + 17}" text-anchor="middle">${say(x, value)}</text>`);
  }
  out.push(`<line x1="${left}" x2="${right}" y1="${lower}" y2="${lower}" stroke="#555"/>`);
  out.push(`<text x="${(left + right) / 2}" y="${lower + 36}" text-anchor="middle">${escape(x.label)}</text>`);
  const middle = (upper + lower) / 2;
  out.push(`<text x="16" y="${middle}" text-anchor="middle" transform="rotate(-90 16 ${middle})">${escape(y.label)}</text>`);
  series.forEach((one, i) => {
    const colour = COLOURS[i % COLOURS.length] as string;
    if (one.band && one.band.length > 1) {
      const there = one.band.map(([at, , high]) => `${px(sx(at))},${px(sy(high))}`);
      const back = [...one.band].reverse().map(([at, low]) => `${px(sx(at))},${px(sy(low))}`);
      out.push(`<polygon points="${[...there, ...back].join(' ')}" fill="${colour}" fill-opacity="0.15"/>`);
    }
    if (one.dots)
      one.points.forEach(([a, b], k) =>
        out.push(`<circle cx="${px(sx(a))}" cy="${px(sy(b))}" r="${px(one.dots?.[k] ?? 3)}" fill="${colour}" fill-opacity="0.8"/>`),
      );
    else {
      const dash = one.dashed === true ? ' stroke-dasharray="5 4"' : '';
      out.push(
        `<polyline points="${one.points.map(([a, b]) => `${px(sx(a))},${px(sy(b))}`).join(' ')}" fill="none" stroke="${colour}" stroke-width="2"${dash}/>`,
      );
    }
    const line = top + HEIGHT + i * LEGEND_LINE;
    out.push(`<rect x="${left}" y="${line - 9}" width="14" height="10" fill="${colour}"/>`);
    out.push(`<text x="${left + 20}" y="${line}">${escape(one.name)}</text>`);
  });
  return { text: out.join('\n'), height: HEIGHT + series.length * LEGEND_LINE + 8 };
}
