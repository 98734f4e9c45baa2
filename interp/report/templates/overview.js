// Draws the panels of the page from its data. One state (step and choices) drives all of them, and
// stands in the address after #, so that a view can be sent.
'use strict';
const D = JSON.parse(document.getElementById('data').textContent);
const state = {};
const panels = {};   // name -> {draw(body), rows(), moves: redrawn when the step moves}
const drawn = new Set();
const css = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
const COLOR = {'name attention': 'name', memory: 'memory', extraction: 'extraction', relation: 'relation'};
const color = mechanism => css(COLOR[mechanism]);
const number = (x, digits = 2) => x === null || x === undefined ? 'not measured' : x.toFixed(digits).replace('-', '−');
const range = (low, high) => low === null || low === undefined ? '' : ` [${number(low)}, ${number(high)}]`;
const el = (tag, attributes = {}, ...inside) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
};
const svg = (tag, attributes = {}, text) => {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
// Red below 0, blue above it; 0 has the colour of nothing.
const diverging = () => [[0, css('low-2')], [.25, css('low-1')], [.5, css('zero')], [.75, css('high-1')], [1, css('high-2')]];
const step = () => D.steps[state.at];
// The last measured checkpoint at or before the slider's.
const place = steps => Math.max(0, steps.filter(s => s <= step()).length - 1);

function layout(more) {
  const axis = {color: css('text'), gridcolor: css('line'), zerolinecolor: css('line'), linecolor: css('line'), automargin: true};
  const made = {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: {size: 12, color: css('text'), family: 'system-ui, sans-serif'},
    margin: {l: 8, r: 8, t: 8, b: 8}, legend: {orientation: 'h', y: -0.25, font: {size: 12}}, hoverlabel: {align: 'left'}, showlegend: false, ...more};
  for (const key of Object.keys(made)) if (/^[xy]axis/.test(key)) made[key] = {...axis, ...made[key]};
  for (const key of ['xaxis', 'yaxis']) made[key] = made[key] || axis;
  return made;
}
const plot = (body, traces, how) => {
  let at = body.querySelector('.plot');
  if (!at) body.append(at = el('div', {class: 'plot'}));
  return Plotly.react(at, traces, layout(how), {responsive: true, displaylogo: false, displayModeBar: false});
};
const here = extra => [{type: 'line', xref: 'x', yref: 'paper', x0: step(), x1: step(), y0: 0, y1: 1, line: {color: css('soft'), width: 1.5, dash: 'dot'}}, ...(extra || [])];
const plateau = () => D.training && D.training.plateau ? [{type: 'rect', xref: 'x', yref: 'paper', x0: D.training.plateau[0], x1: D.training.plateau[1], y0: 0, y1: 1, fillcolor: css('shade'), line: {width: 0}, layer: 'below'}] : [];
const stepAxis = () => ({title: {text: 'training step'}, range: [0, D.steps[D.steps.length - 1] * 1.01]});
function withBand(x, curve, shade, name, how, hover, axes = {}) {
  const ok = x.map((_, i) => i).filter(i => curve.mean[i] !== null);
  const take = list => ok.map(i => list[i]);
  return [
    {x: [...take(x), ...take(x).reverse()], y: [...take(curve.low), ...take(curve.high).reverse()], fill: 'toself', fillcolor: shade, opacity: .22, line: {width: 0}, mode: 'lines', hoverinfo: 'skip', showlegend: false, ...axes},
    {x: take(x), y: take(curve.mean), name, mode: 'lines', text: ok.map(i => `step ${x[i]}: ${number(curve.mean[i])}${range(curve.low[i], curve.high[i])}`), hovertemplate: hover, ...how, ...axes}];
}

// When: knowledge on top, one row per mechanism.
panels.timeline = {
  moves: true,
  draw(body) {
    const M = D.mechanisms, names = M.names, rows = 1 + names.length, traces = [], how = {}, marks = [];
    const narrow = body.clientWidth < 620, height = 1 / rows;
    const domain = row => [1 - (row + 1) * height + .02, 1 - row * height - .035];
    how.xaxis = {...stepAxis(), anchor: 'y' + rows, domain: [0, 1]};
    how.yaxis = {domain: domain(0), range: [-.05, 1.08], tickvals: [0, .5, 1], title: {text: 'share'}};
    const title = (name, what) => narrow ? `<b>${name}</b>` : `<b>${name}</b>: ${what}`;
    const formation = narrow ? '◆ half-way step; bar: 10 to 90 %' : 'formation: ◆ half-way step, bar from 10 % to 90 %';
    const effect = narrow ? 'effect of all its parts' : 'effect: recall lost without all its heads (or MLPs) together', score = narrow ? 'score (not a cause)' : 'score: attention of its main head; for memory, how much better the value can be decoded';
    const titles = [{text: title('known', 'share of values said right'), row: 0, color: css('known')}];
    for (const [key, name, shade, dash] of [['train', 'people trained on', 'known', 'solid'], ['held-out', 'people never seen', 'unseen', 'dash']]) {
      const curve = D.training && D.training.splits[key];
      if (curve) traces.push({x: D.training.steps, y: curve.accuracy, name, mode: 'lines', line: {color: css(shade), dash, width: 2}, hovertemplate: `${name}<br>step %{x}: %{y:.3f}, n = ${curve.n} people<extra></extra>`, showlegend: true});
    }
    names.forEach((name, i) => {
      const axis = 'y' + (i + 2), shade = color(name);
      how['yaxis' + (i + 2)] = {domain: domain(i + 1), range: [-.36, 1.08], tickvals: [0, .5, 1], title: {text: 'share'}};
      titles.push({text: title(name, M.short[name]), row: i + 1, color: shade});
      const cause = M.curves[name].cause, attention = M.curves[name].score;
      if (cause) traces.push(...withBand(M.steps, cause, shade, effect, {line: {color: shade, width: 2.5}, showlegend: !traces.some(x => x.name === effect)}, `${name}, recall lost without it<br>%{text}<br>n = ${M.n} facts<extra></extra>`, {yaxis: axis}));
      if (attention) traces.push(...withBand(M.steps, attention, shade, score, {line: {color: shade, width: 1.5, dash: 'dot'}, showlegend: !traces.some(x => x.name === score)}, `${name}, score (not a cause)<br>%{text}<br>n = ${M.n} facts<extra></extra>`, {yaxis: axis}));
      for (const [kind, y] of [['cause', -.14], ['score', -.27]]) {
        const t = M.times[name] && M.times[name][kind];
        if (!t) continue;
        const first = !traces.some(x => x.name === formation && x.showlegend);
        traces.push({x: [t.onset, t.completion], y: [y, y], yaxis: axis, mode: 'lines', line: {color: shade, width: kind === 'cause' ? 7 : 3}, opacity: .55, hoverinfo: 'skip', showlegend: false});
        traces.push({x: [t.midpoint], y: [y], yaxis: axis, mode: 'markers', name: formation, showlegend: first, marker: {symbol: kind === 'cause' ? 'diamond' : 'diamond-open', size: 10, color: shade}, error_x: {type: 'data', symmetric: false, array: [t.high - t.midpoint], arrayminus: [t.midpoint - t.low], color: shade}, hovertemplate: `${name}, ${kind === 'cause' ? 'recall lost without it' : 'score'}: half-way at step ${Math.round(t.midpoint)} [${Math.round(t.low)}, ${Math.round(t.high)}]<br>checkpoints there are ${Math.round(t.spacing)} steps apart<extra></extra>`});
      }
    });
    how.annotations = titles.map(t => ({text: t.text, xref: 'paper', yref: 'paper', x: 0, xanchor: 'left', y: domain(t.row)[1], yanchor: 'bottom', showarrow: false, font: {color: t.color, size: 12}}));
    const flat = D.training && D.training.plateau;
    if (flat) how.annotations.push({text: 'plateau', xref: 'x', yref: 'paper', x: (flat[0] + flat[1]) / 2, y: domain(0)[1], yanchor: 'top', showarrow: false, font: {size: 12, color: css('soft')}});
    plot(body, traces, {...how, height: 120 + rows * (narrow ? 105 : 115), showlegend: true, legend: {orientation: 'h', y: -.1, font: {size: 12}}, shapes: here(plateau()), margin: {l: 45, r: 8, t: 8, b: 40}});
  },
  rows: () => D.mechanisms.names.flatMap(name => ['cause', 'score'].flatMap(kind => {
    const c = D.mechanisms.curves[name][kind];
    return c ? D.mechanisms.steps.map((s, i) => ({mechanism: name, kind, step: s, mean: c.mean[i], low: c.low[i], high: c.high[i], n_facts: D.mechanisms.n})) : [];
  })),
};

// Where: layers × token roles, with the named heads and MLPs. One unit of the drawing is one pixel,
// so that its text stays readable on small screens.
panels.model = {
  moves: true,
  draw(body) {
    const M = D.mechanisms, roles = D.model.roles, layers = D.model.layers, at = place(M.steps);
    const named = M.components.filter(c => c.ever), W = Math.max(330, Math.min(1000, body.clientWidth));
    const narrow = W < 620, left = narrow ? 58 : 104, width = (W - left - 2) / roles.length, size = 28;
    const lanes = {}, lane = c => `${c.layer}|${c.kind}|${c.dest}`;
    for (const c of named) (lanes[lane(c)] = lanes[lane(c)] || []).push(c);
    const perRow = {head: Math.max(1, Math.floor((width - 8) / (size + 2))), mlp: Math.max(1, Math.floor((width - 8) / 50))};
    const tall = (layer, kind) => 10 + size * Math.max(1, ...roles.map(role => Math.ceil(((lanes[`${layer}|${kind}|${role}`] || []).length) / perRow[kind])));
    const top = {};
    let H = 6;
    for (let layer = layers - 1; layer >= 0; layer--) for (const kind of ['mlp', 'head']) {
      top[`${layer}|${kind}`] = H;
      H += tall(layer, kind) + (kind === 'head' ? 34 : 8);
    }
    H += 26;
    const drawing = svg('svg', {class: 'model', width: W, height: H, viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `The model at step ${M.steps[at]}`});
    const x0 = role => left + roles.indexOf(role) * width;
    const words = role => narrow ? D.model.words[role].split(' ')[0] : D.model.words[role];
    roles.forEach(role => drawing.append(svg('text', {x: x0(role) + width / 2, y: H - 10, 'text-anchor': 'middle'}, words(role))));
    for (let layer = 0; layer < layers; layer++) for (const kind of ['mlp', 'head']) {
      const y = top[`${layer}|${kind}`], label = kind === 'mlp' ? 'MLP' : narrow ? 'heads' : 'attention heads';
      drawing.append(svg('text', {x: 0, y: y + 23, class: 'soft'}, narrow ? `L${layer} ${label}` : kind === 'mlp' ? `layer ${layer}: MLP` : label));
      for (const role of roles) drawing.append(svg('rect', {x: x0(role) + 2, y, width: width - 4, height: tall(layer, kind), rx: 6, class: 'slot'}));
    }
    const centre = c => {
      const group = lanes[lane(c)], i = group.indexOf(c), row = Math.floor(i / perRow[c.kind]);
      const inRow = Math.min(perRow[c.kind], group.length - row * perRow[c.kind]);
      return [x0(c.dest) + width * (i % perRow[c.kind] + 1) / (inRow + 1), top[`${c.layer}|${c.kind}`] + 5 + size * (row + .5)];
    };
    const said = el('p', {class: 'soft', 'aria-live': 'polite'});
    for (const c of named) {
      const share = c.share[at], on = c.named[at], strength = share === null ? 0 : Math.min(1, Math.max(0, share) / .5);
      const [x, y] = centre(c), shade = color(c.mechanism), opacity = on ? .5 + .5 * strength : .08;
      const numbers = `${c.component}, ${c.mechanism}, ${c.label}: ${on ? '' : 'not shown to matter at this step; '}recall lost without it ${number(share)}${range(c.low[at], c.high[at])} at step ${M.steps[at]}, n = ${M.n} facts`;
      const group = svg('g', {'data-component': c.id, 'data-on': on, tabindex: 0, role: 'img', 'aria-label': numbers});
      const floor = top[`${c.layer}|head`] + tall(c.layer, 'head');
      if (c.kind === 'head') for (const src of c.src) if (src !== c.dest)
        group.append(svg('path', {d: `M ${x0(src) + width / 2} ${floor} C ${x0(src) + width / 2} ${floor + 26}, ${x} ${floor + 26}, ${x} ${y + 13}`, fill: 'none', stroke: shade, 'stroke-opacity': on ? opacity : .15, 'stroke-width': 1 + 4 * strength}));
      group.append(c.kind === 'head' ? svg('circle', {cx: x, cy: y, r: 13, fill: shade, 'fill-opacity': opacity, stroke: shade}) : svg('rect', {x: x - 22, y: y - 12, width: 44, height: 24, rx: 5, fill: shade, 'fill-opacity': opacity, stroke: shade}));
      group.append(svg('text', {x, y: y + 4.5, 'text-anchor': 'middle', style: `fill:${css(opacity > .75 ? 'page' : 'text')};font-size:12px;font-weight:600`}, c.kind === 'head' ? c.component.slice(c.component.indexOf('H')) : 'MLP'));
      group.append(svg('title', {}, numbers));
      group.onclick = () => { said.textContent = numbers; if (c.kind === 'head' && D.attention) choose({head: c.component}); };
      group.onfocus = () => { said.textContent = numbers; };
      drawing.append(group);
    }
    const key = el('p', {class: 'soft'});
    said.textContent = `Measured at step ${M.steps[at]}${M.steps[at] === step() ? '' : `, the last of ${M.steps.length} localized checkpoints up to step ${step()}`}.`;
    for (const name of M.names) key.append(el('span', {class: 'item'}, el('span', {class: 'key', style: `background:${color(name)}`}), `${name}: ${M.short[name]}`), ' ');
    body.replaceChildren(said, drawing, key);
  },
  rows: () => panels.components.rows(),
};

panels.components = {
  moves: true,
  draw(body) {
    const M = D.mechanisms, shown = M.components.filter(c => c.ever).reverse();
    const text = shown.map(c => M.steps.map((s, i) => `${c.component} (${c.mechanism}, ${c.place})<br>step ${s}: ${number(c.share[i])}${range(c.low[i], c.high[i])}, n = ${M.n}<br>${c.named[i] ? 'shown to matter' : 'not shown to matter'}`.replace(/: not measured.*/, ': no recall to lose yet')));
    const cells = (keep, opacity) => ({opacity, z: shown.map(c => c.share.map((x, i) => keep(c.named[i]) ? x : null))});
    const same = {type: 'heatmap', x: M.steps.map(String), y: shown.map(c => `${c.component} · ${c.label}`), text, hovertemplate: '%{text}<extra></extra>', colorscale: diverging(), zmid: 0, zmin: -.6, zmax: .6, xgap: 1, ygap: 2, colorbar: {title: {text: 'share of recall lost', side: 'top'}, orientation: 'h', y: 1.02, yanchor: 'bottom', thickness: 10, len: .6}};
    plot(body, [{...same, ...cells(x => x, 1)}, {...same, ...cells(x => !x, .35), showscale: false}],
      {height: 150 + 26 * shown.length, xaxis: {type: 'category', title: {text: 'training step'}}, yaxis: {tickfont: {size: 12}}, margin: {l: 8, r: 8, t: 60, b: 8}, shapes: [{type: 'rect', xref: 'x', yref: 'paper', x0: place(M.steps) - .5, x1: place(M.steps) + .5, y0: 0, y1: 1, line: {color: css('text'), width: 2}}]});
  },
  rows: () => D.mechanisms.components.flatMap(c => D.mechanisms.steps.map((s, i) => ({mechanism: c.mechanism, component: c.component, place: c.place, step: s, share_lost: c.share[i], low: c.low[i], high: c.high[i], shown_to_matter: c.named[i], n_facts: D.mechanisms.n}))),
};

panels.lines = {
  moves: true, choices: ['mechanism'],
  draw(body) {
    const M = D.mechanisms, shown = M.components.filter(c => c.ever && c.mechanism === state.mechanism);
    const dashes = ['solid', 'dash', 'dot', 'dashdot', 'longdash'];
    plot(body, shown.flatMap((c, i) => withBand(M.steps, {mean: c.share, low: c.low, high: c.high}, color(c.mechanism), `${c.component}, ${c.label}`, {line: {color: color(c.mechanism), dash: dashes[i % 5], width: 2}, showlegend: true}, `${c.component}, ${c.place}<br>%{text}<br>n = ${M.n} facts<extra></extra>`)),
      {height: 360, showlegend: true, xaxis: stepAxis(), yaxis: {title: {text: 'share of recall lost'}}, shapes: here(plateau())});
  },
  rows: () => panels.components.rows().filter(r => r.mechanism === state.mechanism),
};

function curves(body, measure, axis, how = {}) {
  const T = D.training, shades = {train: ['known', 'solid', 'people trained on'], 'held-out': ['unseen', 'dash', 'people never seen'], new: ['memory', 'dot', 'new people'], unknown: ['relation', 'dashdot', 'people met with other values every time']};
  const traces = Object.entries(T.splits).filter(([key]) => shades[key]).map(([key, values]) => ({x: T.steps, y: values[measure], name: shades[key][2], mode: 'lines', line: {color: css(shades[key][0]), dash: shades[key][1], width: 2}, hovertemplate: `${shades[key][2]}<br>step %{x}: %{y:.3f}<br>n = ${values.n} people<extra></extra>`}));
  if (measure === 'loss') traces.push({x: [T.steps[0], T.steps[T.steps.length - 1]], y: [T.baseline, T.baseline], name: 'knowing only how frequent values are', mode: 'lines', line: {color: css('soft'), dash: 'dot', width: 1}, hovertemplate: '%{y:.2f} nats<extra></extra>'});
  plot(body, traces, {height: 330, showlegend: true, xaxis: stepAxis(), yaxis: {title: {text: axis}, rangemode: 'tozero'}, shapes: here(plateau()), ...how});
}
const trainingRows = measure => () => Object.entries(D.training.splits).flatMap(([split, values]) => D.training.steps.map((s, i) => ({split, step: s, [measure]: values[measure][i], n_people: values.n})));
panels.accuracy = {moves: true, draw: body => curves(body, 'accuracy', 'share of values right'), rows: trainingRows('accuracy')};
panels.loss = {moves: true, draw: body => curves(body, 'loss', 'loss, nats per value'), rows: trainingRows('loss')};
panels.confidence = {moves: true, draw: body => curves(body, 'max_probability', 'mean highest probability'), rows: trainingRows('max_probability')};
panels.byattribute = {
  moves: true,
  draw(body) {
    const T = D.training, dashes = ['solid', 'dash', 'dot'], shades = ['name', 'memory', 'extraction', 'relation', 'known', 'unseen'];
    plot(body, Object.entries(T.attributes).map(([name, y], i) => ({x: T.steps, y, name: name.replace('_', ' '), mode: 'lines', line: {color: css(shades[i % 6]), dash: dashes[Math.floor(i / 6) % 3], width: 2}, hovertemplate: `${name}<br>step %{x}: %{y:.3f}<extra></extra>`})),
      {height: 330, showlegend: true, xaxis: stepAxis(), yaxis: {title: {text: 'share of values right'}, range: [-.03, 1.03]}, shapes: here(plateau())});
  },
  rows: () => Object.entries(D.training.attributes).flatMap(([attribute, y]) => D.training.steps.map((s, i) => ({attribute, step: s, accuracy: y[i]}))),
};

// Patch maps: one heat map per site.
panels.maps = {
  moves: true, choices: ['site', 'attribute', 'direction', 'metric'],
  draw(body) {
    const P = D.patching, of = P.values[state.direction][state.metric][state.attribute], at = place(P.steps);
    const shown = Object.keys(P.sites).filter(site => state.site === 'all' || site === state.site);
    let grid = body.querySelector('.grid');
    if (!grid || grid.dataset.shown !== shown.join()) {
      grid = el('div', {class: 'grid'});
      grid.dataset.shown = shown.join();
      for (const site of shown) grid.append(el('div', {'data-site': site}, el('p', {class: 'soft'})));
      body.replaceChildren(grid);
    }
    for (const site of shown) {
      const box = grid.querySelector(`[data-site="${site}"]`), S = P.sites[site], v = of[site];
      box.querySelector('p').textContent = P.words[site];
      const text = v.mean[at].map((row, i) => row.map((x, j) => x === null ? (v.apart[at] ? 'no prompt has this position' : 'the model does not tell the two prompts apart yet') : `${S.rows[i]}, ${D.model.words[S.columns[j]] || S.columns[j]}<br>step ${P.steps[at]}: ${number(x)}${range(v.low[at][i][j], v.high[at][i][j])}<br>n = ${v.n[i][j]} facts`));
      plot(box, [{type: 'heatmap', z: v.mean[at], x: S.columns.map(c => D.model.words[c] || c), y: S.rows, text, hovertemplate: '%{text}<extra></extra>', colorscale: diverging(), zmid: 0, zmin: -1, zmax: 1, xgap: 1, ygap: 1, showscale: true, colorbar: {thickness: 10, tickvals: [-1, 0, 1], title: {text: P.shares[state.direction], side: 'right'}}}],
        {height: 110 + Math.max(4, S.rows.length) * 24, xaxis: {type: 'category', tickangle: -25}, yaxis: {type: 'category'}, plot_bgcolor: css('unknown')});
    }
  },
  rows() {
    const P = D.patching, of = P.values[state.direction][state.metric][state.attribute], rows = [];
    for (const site of Object.keys(P.sites)) if (state.site === 'all' || site === state.site)
      P.steps.forEach((s, k) => P.sites[site].rows.forEach((row, i) => P.sites[site].columns.forEach((column, j) => rows.push({site, step: s, component: row, position: column, attribute: state.attribute, direction: state.direction, metric: state.metric, [P.shares[state.direction]]: of[site].mean[k][i][j], low: of[site].low[k][i][j], high: of[site].high[k][i][j], n_facts: of[site].n[i][j]}))));
    return rows;
  },
};

// Attention over the tokens of example prompts.
const bytes = {};
function pattern(prompt, k, layer, head) {
  const A = D.attention, p = A.prompts[prompt];
  if (!bytes[prompt]) bytes[prompt] = Uint8Array.from(atob(p.patterns), c => c.charCodeAt(0));
  const n = p.tokens.length, from = ((k * A.layers + layer) * A.heads + head) * n * n;
  return Array.from({length: n}, (_, i) => Array.from(bytes[prompt].subarray(from + i * n, from + (i + 1) * n), x => x / 255));
}
panels.attention = {
  moves: true, choices: ['prompt', 'head'],
  draw(body) {
    const A = D.attention, k = place(A.steps), prompt = A.prompts.findIndex(p => p.label === state.prompt), p = A.prompts[prompt];
    const [layer, head] = state.head.slice(1).split('H').map(Number), n = p.tokens.length, shade = {name_first: 'name', name_middle: 'name', name_last: 'name', cue: 'relation', final: 'extraction'};
    const focused = body.querySelector('.heads')?.contains(document.activeElement);
    const tokens = el('p', {class: 'tokens'}, ...p.tokens.map((t, i) => el('span', {title: D.model.words[p.roles[i]] || p.roles[i], style: `border-color:${css(shade[p.roles[i]] || 'line')}`}, t)), ` → ${p.answer}`);
    const heads = el('div', {class: 'heads', style: `grid-template-columns:repeat(${A.heads}, minmax(0, 5.2rem))`});
    for (let l = 0; l < A.layers; l++) for (let h = 0; h < A.heads; h++) {
      const canvas = el('canvas', {width: n, height: n}), z = pattern(prompt, k, l, h), draw = canvas.getContext('2d'), name = `L${l}H${h}`;
      draw.fillStyle = css('name');
      z.forEach((row, i) => row.forEach((x, j) => { draw.globalAlpha = x; draw.fillRect(j, i, 1, 1); }));
      const button = el('button', {'aria-pressed': name === state.head, title: `attention of ${name}`}, name, canvas);
      button.onclick = () => choose({head: name});
      heads.append(button);
    }
    const z = pattern(prompt, k, layer, head), labels = p.tokens.map((t, i) => `${i}: ${t}`);
    let big = body.querySelector('.big');
    const fresh = el('div', {class: 'big'});
    big = big || fresh;
    const when = el('p', {class: 'soft'}, `At step ${A.steps[k]}.`);
    body.replaceChildren(tokens, when, el('div', {class: 'grid'}, heads, big));
    if (focused) heads.querySelector('[aria-pressed=true]').focus();
    plot(big, [{type: 'heatmap', z, x: labels, y: labels, colorscale: [[0, css('page')], [1, css('name')]], zmin: 0, zmax: 1, hovertemplate: `${state.head}, step ${A.steps[k]}<br>%{y} attends to %{x}<br>share %{z:.2f}<extra></extra>`, colorbar: {thickness: 10, title: {text: 'share of attention', side: 'right'}}}],
      {height: 460, xaxis: {title: {text: 'to (key)'}, tickangle: -60, tickfont: {size: 12}}, yaxis: {title: {text: 'from (query)'}, autorange: 'reversed', tickfont: {size: 12}}});
  },
  rows() {
    const A = D.attention, k = place(A.steps), prompt = A.prompts.findIndex(p => p.label === state.prompt), p = A.prompts[prompt];
    const [layer, head] = state.head.slice(1).split('H').map(Number);
    return pattern(prompt, k, layer, head).flatMap((row, i) => row.slice(0, i + 1).map((x, j) => ({step: A.steps[k], head: state.head, from: i, from_token: p.tokens[i], to: j, to_token: p.tokens[j], share: +x.toFixed(3)})));
  },
};
panels.edges = {
  moves: true, choices: ['head'],
  draw(body) {
    const E = D.mechanisms.attention, shades = ['name', 'memory', 'extraction', 'relation', 'unseen', 'known', 'soft'];
    plot(body, Object.entries(E.of[state.head]).flatMap(([edge, curve], i) => withBand(D.mechanisms.steps, curve, css(shades[i % 7]), D.model.places[edge] || edge, {line: {color: css(shades[i % 7]), width: 2}, showlegend: true}, `${D.model.places[edge] || edge}<br>%{text}<br>n = ${D.mechanisms.n} facts<extra></extra>`)),
      {height: 400, showlegend: true, xaxis: stepAxis(), yaxis: {title: {text: 'share of attention'}, range: [-.03, 1.03]}, shapes: here(plateau())});
  },
  rows: () => Object.entries(D.mechanisms.attention.of[state.head]).flatMap(([edge, c]) => D.mechanisms.steps.map((s, i) => ({head: state.head, edge, step: s, mean: c.mean[i], low: c.low[i], high: c.high[i], n_facts: D.mechanisms.n}))),
};
// Panels that are lines over some axis, described by the data.
for (const [name, P] of Object.entries(D.plain)) panels[name] = {
  moves: P.over_training,
  draw(body) {
    const shades = ['name', 'memory', 'extraction', 'relation', 'unseen', 'known'];
    plot(body, P.lines.flatMap((line, i) => withBand(line.x, line, css(shades[i % 6]), line.name, {line: {color: css(shades[i % 6]), width: 2}, showlegend: true}, `${line.name}<br>%{text}<br>${P.n}<extra></extra>`)),
      {height: 360, showlegend: true, xaxis: P.over_training ? stepAxis() : {title: {text: P.x}}, yaxis: {title: {text: P.y}}, shapes: P.over_training ? here(plateau()) : []});
  },
  rows: () => P.lines.flatMap(line => line.x.map((x, i) => ({line: line.name, [P.x]: x, mean: line.mean[i], low: line.low[i], high: line.high[i]}))),
};

const OPTIONS = {
  site: () => ['all', ...Object.keys(D.patching.sites)],
  attribute: () => D.patching.attributes,
  direction: () => Object.keys(D.patching.values),
  metric: () => Object.keys(D.patching.values[Object.keys(D.patching.values)[0]]),
  mechanism: () => D.mechanisms.names,
  prompt: () => D.attention.prompts.map(p => p.label),
  head: () => Array.from({length: D.attention.layers * D.attention.heads}, (_, i) => `L${Math.floor(i / D.attention.heads)}H${i % D.attention.heads}`),
};
// The part of the data that a choice is of.
const SOURCE = {site: 'patching', attribute: 'patching', direction: 'patching', metric: 'patching', mechanism: 'mechanisms', prompt: 'attention', head: 'attention'};
const LABELS = {site: v => v === 'all' ? 'all sites' : D.patching.words[v], attribute: v => v === 'all' ? 'all attributes' : v.replace('_', ' '), metric: v => ({logit_diff: 'logit difference', first_logprob: 'log-probability of the right answer'})[v] || v};

function redraw(names) {
  for (const name of names) if (drawn.has(name)) panels[name].draw(document.querySelector(`[data-panel="${name}"] .body`));
}
const defaultOf = key => OPTIONS[key]().includes(D.first[key]) ? D.first[key] : OPTIONS[key]()[0];
function write() {
  const said = new URLSearchParams({step: step()}), slider = document.getElementById('step');
  for (const [key, value] of Object.entries(state)) if (OPTIONS[key] && value !== defaultOf(key)) said.set(key, value);
  history.replaceState(null, '', '#' + said);
  document.getElementById('at').textContent = `step ${step()}`;
  slider.value = state.at;
  slider.setAttribute('aria-valuetext', `step ${step()}`);
}
function move(at) {
  state.at = Math.min(D.steps.length - 1, Math.max(0, at));
  write();
  redraw(Object.keys(panels).filter(name => panels[name].moves));
}
function choose(changed) {
  Object.assign(state, changed);
  for (const [key, value] of Object.entries(changed)) for (const select of document.querySelectorAll(`select[data-choice="${key}"]`)) select.value = value;
  write();
  redraw(Object.keys(panels).filter(name => (panels[name].choices || []).some(key => key in changed)));
}
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1)), at = D.steps.indexOf(Number(asked.get('step')));
  state.at = asked.has('step') && at >= 0 ? at : D.steps.length - 1;
  for (const [key, options] of Object.entries(OPTIONS)) {
    if (!D[SOURCE[key]]) continue;
    const wanted = asked.get(key);
    state[key] = options().includes(wanted) ? wanted : defaultOf(key);
  }
}
function csv(name) {
  const rows = panels[name].rows(), heads = Object.keys(rows[0] || {});
  // A cell that a spreadsheet would take for a formula is text.
  const cell = x => x === null || x === undefined ? '' : typeof x === 'string' && /[",\r\n]|^[=+@\t\r-]/.test(x) ? `"${(/^[=+@\t\r-]/.test(x) ? "'" : '') + x.replace(/"/g, '""')}"` : String(x);
  const text = [heads, ...rows.map(row => heads.map(key => row[key]))].map(row => row.map(cell).join(',')).join('\n') + '\n';
  const link = el('a', {href: URL.createObjectURL(new Blob([text], {type: 'text/csv'})), download: `${D.name}-${name}.csv`});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function show(name) {
  if (drawn.has(name)) return;
  drawn.add(name);
  redraw([name]);
}

readAddress();
const slider = document.getElementById('step');
slider.max = D.steps.length - 1;
slider.oninput = () => move(Number(slider.value));
for (const select of document.querySelectorAll('select[data-choice]')) {
  const key = select.dataset.choice, label = LABELS[key] || (x => x);
  for (const value of OPTIONS[key]()) select.append(el('option', {value}, label(value)));
  select.value = state[key];
  select.onchange = () => choose({[key]: select.value});
}
let playing = null;
function play() {
  const button = document.getElementById('play');
  if (playing) { clearInterval(playing); playing = null; button.textContent = '▶'; return; }
  if (state.at === D.steps.length - 1) move(0);
  button.textContent = '❚❚';
  playing = setInterval(() => { if (state.at === D.steps.length - 1) play(); else move(state.at + 1); }, 700);
}
document.getElementById('play').onclick = play;
document.addEventListener('keydown', event => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target !== document.body && event.target !== slider) return;
  const to = {ArrowRight: state.at + 1, ArrowLeft: state.at - 1}[event.key];
  if (to === undefined && event.key !== ' ') return;
  event.preventDefault();
  if (event.key === ' ' || playing) play();
  if (to !== undefined) move(to);
});
for (const figure of document.querySelectorAll('[data-panel]')) figure.querySelector('.csv').onclick = () => csv(figure.dataset.panel);
const seen = new IntersectionObserver(entries => entries.forEach(entry => { if (entry.isIntersecting) show(entry.target.dataset.panel); }), {rootMargin: '300px'});
document.querySelectorAll('[data-panel]').forEach(figure => seen.observe(figure));
const all = () => Object.keys(panels).filter(name => document.querySelector(`[data-panel="${name}"]`));
const plots = () => document.querySelectorAll('.js-plotly-plot');
addEventListener('beforeprint', () => {
  document.body.classList.add('printing');
  all().forEach(show);
  redraw(['model']);
  plots().forEach(x => Plotly.relayout(x, {width: 680, autosize: false}));
});
addEventListener('afterprint', () => {
  document.body.classList.remove('printing');
  redraw(['model']);
  plots().forEach(x => Plotly.relayout(x, {width: null, autosize: true}));
});
addEventListener('hashchange', () => {
  const keys = [...new URLSearchParams(location.hash.slice(1)).keys()];
  if (!keys.some(key => key === 'step' || key in OPTIONS)) return;  // a link to a section
  readAddress(); write(); for (const key of Object.keys(OPTIONS)) for (const select of document.querySelectorAll(`select[data-choice="${key}"]`)) select.value = state[key]; redraw(all()); });
let width = innerWidth;
addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; redraw(['model', 'timeline'].filter(name => drawn.has(name))); } });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => redraw(all()));
write();
