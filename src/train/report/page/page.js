"use strict";
// Zooming, values under the pointer, sorting. Without this script the page shows the same curves and tables.
(() => {
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  all(".tools").forEach(tools => { tools.hidden = false; });

  // Curves. A part of the axis is [from, to] in the unit of the axis, steps or epochs; all charts show the same part.
  const source = document.getElementById("curve-data");
  const known = source ? JSON.parse(source.textContent) : { charts: [], lengths: { step: 1, epoch: 1 } };
  const [LEFT, RIGHT, TOP, BELOW, HEIGHT, PRINTED] = [54, 12, 10, 30, 250, 560];
  const [ACROSS, DOWN, LEAST] = [10000, 1000, 1 / 500];
  let unit = "epoch", part = [0, known.lengths.epoch], cursor = null, printing = false;
  const length = () => known.lengths[unit];
  const inUnit = (series, step) => unit === "step" ? step : step * series.epochs;

  const number = value => {
    const size = Math.abs(value);
    if (size !== 0 && size < 1e-3) return value.toExponential(2);
    if (size < 100) return value.toFixed(3);
    return size < 1e6 ? Math.round(value).toLocaleString("en") : value.toExponential(2);
  };
  const shown = (chart, value) => chart.unit === "share" ? (value * 100).toFixed(2) + " %" : number(value);
  // 1, 2 or 5 times a power of ten.
  const nice = least => {
    const power = 10 ** Math.floor(Math.log10(Math.max(least, 1e-9)));
    return [1, 2, 5, 10].map(m => m * power).find(step => step >= least * 0.999);
  };
  const ticks = (low, high, step) => {
    const [first, last] = [Math.ceil(low / step - 1e-6), Math.floor(high / step + 1e-6)];
    return Array.from({ length: Math.min(50, last - first + 1) }, (_, n) => (first + n) * step);
  };
  const decimal = (value, step) => {
    if (value === 0) return "0";
    const text = value.toFixed(Math.max(0, -Math.floor(Math.log10(step * 1.001))));
    return unit === "step" && step >= 1 ? Number(text).toLocaleString("en") : text;
  };
  // The number of the column that holds a step: the first that ends at it or after it.
  const column = (series, step) => {
    let [low, high] = [0, series.x.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (series.x[middle] >= step - 1e-9) high = middle; else low = middle + 1;
    }
    return low;
  };
  const nearest = (series, step) => {
    const after = column(series, step);
    return after > 0 && step - series.x[after - 1] < series.x[after] - step ? after - 1 : after;
  };

  const charts = all(".chart").map((figure, index) => ({
    svg: figure.querySelector("svg"),
    axes: figure.querySelector(".axes"),
    plot: figure.querySelector(".plot"),
    groups: all(".plot g", figure),
    line: figure.querySelector(".cursor"),
    brush: figure.querySelector(".brush"),
    values: figure.querySelector(".values"),
    keys: all(".key", figure),
    data: known.charts[index],
    hidden: new Set(),
    width: PRINTED,
  }));

  // The vertical axis of a part: the chart's own for the whole, else that of the lines within it.
  const range = chart => {
    const { data, hidden } = chart;
    if (part[0] <= 0 && part[1] >= length() && hidden.size === 0) return [data.low, data.high];
    let [low, high] = [Infinity, -Infinity];
    data.series.forEach((series, at) => {
      if (hidden.has(at)) return;
      const factor = unit === "step" ? 1 : series.epochs;
      const [first, last] = [column(series, part[0] / factor), column(series, part[1] / factor)];
      for (let n = Math.max(0, first - 1); n <= last; n++) {
        low = Math.min(low, series.y[n]);
        high = Math.max(high, series.y[n]);
      }
    });
    if (low > high) return [data.low, data.high];
    const room = Math.max(0.06 * (high - low), 0.02 * Math.abs(high), 0.01 * (data.high - data.low));
    const top = data.unit === "share" ? Math.min(1, high + room) : high + room;
    return [data.floor === null ? low - room : Math.max(data.floor, low - room), top];
  };

  const draw = chart => {
    const { data, svg } = chart;
    const width = printing ? PRINTED : Math.max(240, svg.clientWidth || PRINTED);
    const [wide, tall] = [width - LEFT - RIGHT, HEIGHT - TOP - BELOW];
    const [low, high] = range(chart);
    Object.assign(chart, { width, wide, low, high });
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    chart.plot.setAttribute("width", wide);
    const [from, to] = part.map(at => at / length() * ACROSS);
    const down = value => (data.high - value) / (data.high - data.low) * DOWN;
    chart.plot.setAttribute("viewBox", `${from} ${down(high)} ${to - from} ${down(low) - down(high)}`);
    chart.groups.forEach((group, at) => {
      const series = data.series[at];
      group.setAttribute("transform", `scale(${inUnit(series, series.x[series.x.length - 1]) / length()} 1)`);
      group.style.display = chart.hidden.has(at) ? "none" : "";
    });
    let html = "";
    const step = nice((high - low) / 5);
    for (const value of ticks(low, high, step)) {
      const y = (TOP + tall * (high - value) / (high - low)).toFixed(1);
      const label = data.unit === "share" ? fixed(value * 100, step * 100) + " %"
        : value === 0 ? "0"
        : high < 1e-2 || high >= 1e6 ? value.toExponential(1).replace(".0e", "e")
        : fixed(value, step);
      html += `<path d="M${LEFT} ${y}H${width - RIGHT}"/>`;
      html += `<text x="${LEFT - 7}" y="${+y + 4}" text-anchor="end">${label}</text>`;
    }
    const across = nice((part[1] - part[0]) / (width < 420 ? 4 : 6));
    for (const value of ticks(part[0], part[1], across)) {
      const x = (LEFT + wide * (value - part[0]) / (part[1] - part[0])).toFixed(1);
      if (x > width - 14) continue;
      html += `<text x="${x}" y="${HEIGHT - BELOW + 15}" text-anchor="middle">${decimal(value, across)}</text>`;
    }
    html += `<text class="unit" x="${width - RIGHT}" y="${HEIGHT - 3}" text-anchor="end">${unit}s</text>`;
    chart.axes.innerHTML = html;
    point(chart);
  };
  const fixed = (value, step) => value.toFixed(Math.max(0, -Math.floor(Math.log10(step * 1.001))));

  // The line under the pointer, and the values there.
  const point = chart => {
    const inside = cursor !== null && cursor >= part[0] && cursor <= part[1];
    if (!inside) {
      chart.line.removeAttribute("d");
      chart.values.textContent = "";
      return;
    }
    const x = LEFT + chart.wide * (cursor - part[0]) / (part[1] - part[0]);
    chart.line.setAttribute("d", `M${x.toFixed(1)} ${TOP}V${HEIGHT - BELOW}`);
    const words = [];
    let step = null;
    chart.data.series.forEach((series, at) => {
      if (chart.hidden.has(at)) return;
      const own = unit === "step" ? cursor : cursor / series.epochs;
      step = step === null ? own : step;
      if (own > series.x[series.x.length - 1] * 1.02 + 1) return;
      const n = series.lo ? column(series, own) : nearest(series, own);
      let word = `${series.name} ${shown(chart.data, series.y[n])}`;
      if (series.lo) word += series.lo[n] === series.hi[n] ? ` (step: ${shown(chart.data, series.lo[n])})`
        : ` (steps: ${shown(chart.data, series.lo[n])} to ${shown(chart.data, series.hi[n])})`;
      words.push(word);
    });
    const one = chart.data.series.every(series => series.epochs === chart.data.series[0].epochs);
    const epochs = chart.data.series[0].epochs;
    const place = !one ? `${unit} ${number(cursor)}`
      : `epoch ${(step * epochs).toFixed(2)}, step ${Math.round(step).toLocaleString("en")}`;
    chart.values.textContent = `${place}: ${words.join(" · ")}`;
  };

  const reset = document.getElementById("reset");
  const redraw = () => {
    charts.forEach(draw);
    if (reset) reset.disabled = part[0] <= 0 && part[1] >= length();
  };
  const show = (from, to) => {
    const least = length() * LEAST;
    if (to - from < least) [from, to] = [(from + to - least) / 2, (from + to + least) / 2];
    const wide = Math.min(to - from, length());
    from = Math.min(Math.max(0, from), length() - wide);
    part = [from, from + wide];
    redraw();
  };
  const whole = () => show(0, length());
  const at = (chart, event) => {
    const box = chart.svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.width;
    const share = Math.min(1, Math.max(0, (x - LEFT) / chart.wide));
    return part[0] + share * (part[1] - part[0]);
  };

  charts.forEach(chart => {
    const { svg, brush, keys } = chart;
    // With a script it answers keys, which a screen reader would keep from a picture.
    svg.setAttribute("role", "application");
    svg.setAttribute("aria-roledescription", "chart");
    let start = null;
    const stop = () => {
      start = null;
      ["x", "y", "width", "height"].forEach(name => brush.removeAttribute(name));
    };
    svg.addEventListener("pointerdown", event => {
      if (event.button !== 0) return;
      start = at(chart, event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", event => {
      cursor = at(chart, event);
      charts.forEach(point);
      if (start === null) return;
      const [x, y] = [start, cursor].sort((a, b) => a - b)
        .map(value => LEFT + chart.wide * (value - part[0]) / (part[1] - part[0]));
      const size = { x, y: TOP, width: y - x, height: HEIGHT - TOP - BELOW };
      Object.entries(size).forEach(([name, value]) => brush.setAttribute(name, value));
    });
    svg.addEventListener("pointerup", event => {
      const [from, to] = [start, at(chart, event)].sort((a, b) => a - b);
      const dragged = start !== null && to - from > (part[1] - part[0]) * 0.01;
      stop();
      if (dragged) show(from, to);
    });
    svg.addEventListener("pointercancel", stop);
    svg.addEventListener("pointerleave", () => {
      if (start !== null) return;
      cursor = null;
      charts.forEach(point);
    });
    svg.addEventListener("dblclick", whole);
    svg.addEventListener("keydown", event => {
      const wide = part[1] - part[0];
      const here = cursor === null ? (part[0] + part[1]) / 2 : Math.min(part[1], Math.max(part[0], cursor));
      const zoom = factor => show(here - (here - part[0]) * factor, here + (part[1] - here) * factor);
      const move = by => {
        if (event.shiftKey) return show(part[0] + 10 * by, part[1] + 10 * by);
        cursor = Math.min(part[1], Math.max(part[0], here + by));
        return charts.forEach(point);
      };
      const keys = {
        ArrowLeft: () => move(-wide / 100), ArrowRight: () => move(wide / 100),
        Home: () => move(part[0] - here),
        End: () => move(part[1] - here),
        "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), Escape: whole, 0: whole,
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    keys.forEach((key, index) => key.addEventListener("click", () => {
      if (!chart.hidden.delete(index)) chart.hidden.add(index);
      key.setAttribute("aria-pressed", String(!chart.hidden.has(index)));
      draw(chart);
    }));
    // Only a keyboard's moves are read out; a pointer's would be a flood.
    svg.addEventListener("keydown", () => chart.values.setAttribute("aria-live", "polite"));
    svg.addEventListener("pointermove", () => chart.values.setAttribute("aria-live", "off"));
  });
  if (reset) reset.addEventListener("click", whole);
  all("input[name=unit]").forEach(input => input.addEventListener("change", () => {
    const shares = part.map(value => value / length());
    const place = cursor === null ? null : cursor / length();
    unit = input.value;
    cursor = place === null ? null : place * length();
    show(shares[0] * length(), shares[1] * length());
  }));
  if (charts.length) {
    redraw();
    new ResizeObserver(() => { if (!printing) charts.forEach(draw); }).observe(document.querySelector(".charts"));
    window.addEventListener("beforeprint", () => {
      printing = true;
      cursor = null;
      charts.forEach(draw);
    });
    window.addEventListener("afterprint", () => { printing = false; charts.forEach(draw); });
  }

  // Tables. A dash, a class without images, comes last in both directions.
  const value = cell => {
    const text = cell.textContent.trim();
    return text === "–" ? null : /^[\d,.]+( %)?$/.test(text) ? parseFloat(text.replace(/,/g, "")) : text;
  };
  all("table.sortable").forEach(table => {
    const heads = all("thead th", table);
    heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") === "ascending" ? false
        : head.getAttribute("aria-sort") === "descending" ? true : !head.classList.contains("n") || index === 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = all("tbody tr", table).map((row, at) => [value(row.cells[index]), at, row]);
      rows.sort(([a, i], [b, j]) => {
        if (a === null || b === null) return (a === null) - (b === null) || i - j;
        const numbers = typeof a === "number" && typeof b === "number";
        const order = numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return (rising ? order : -order) || i - j;
      });
      table.tBodies[0].append(...rows.map(row => row[2]));
    }));
  });
  const find = document.getElementById("find");
  if (find) find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    all("table.sortable tbody tr").forEach(row => {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
  });
})();
