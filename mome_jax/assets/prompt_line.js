// The line of prompts of `mome serve`: names of the model are offered while one types, and what is typed is judged.
'use strict';
const typed = () => $('prompt').value.split(',').map((text) => text.trim()).filter(Boolean);
let phrases = []; // [what may be typed, the class it stands for]
let marked = -1;

function offer(list) {
  marked = -1;
  $('offers').hidden = !list.length;
  $('prompt').ariaExpanded = String(Boolean(list.length));
  $('prompt').removeAttribute('aria-activedescendant');
  $('offers').replaceChildren(...list.map(([phrase, name], n) => make('li', {
    id: `offer-${n}`, role: 'option', ariaSelected: 'false', onmousedown: (event) => { event.preventDefault(); take(phrase); },
  }, phrase, ...(name === phrase ? [] : [make('small', {}, name)]))));
}

function take(phrase) {
  const parts = $('prompt').value.split(',');
  parts[parts.length - 1] = `${parts.length > 1 ? ' ' : ''}${phrase}`;
  $('prompt').value = parts.join(',');
  offer([]);
  judgeSoon();
}

function complete() {
  const last = $('prompt').value.split(',').pop().trim().toLowerCase();
  const starts = phrases.filter(([phrase]) => phrase.startsWith(last));
  const holds = phrases.filter(([phrase]) => !phrase.startsWith(last) && phrase.includes(last));
  offer(last ? [...starts, ...holds].filter(([phrase]) => phrase !== last).slice(0, 8) : []);
}

function mark(step) {
  const items = [...$('offers').children];
  if (!items.length) return false;
  marked = (marked + step + items.length) % items.length;
  items.forEach((item, n) => { item.ariaSelected = String(n === marked); });
  $('prompt').setAttribute('aria-activedescendant', items[marked].id); // the focus stays in the line
  items[marked].scrollIntoView({ block: 'nearest' });
  return true;
}

function keys(event) {
  if (event.isComposing) return; // an input method, of Japanese for example, has its own Enter
  const items = [...$('offers').children];
  if (event.key === 'ArrowDown' && mark(1)) event.preventDefault();
  else if (event.key === 'ArrowUp' && mark(-1)) event.preventDefault();
  else if (event.key === 'Escape') offer([]);
  else if ((event.key === 'Tab' || event.key === 'Enter') && marked >= 0) {
    event.preventDefault();
    take(items[marked].firstChild.textContent);
  } else if (event.key === 'Enter') {
    event.preventDefault();
    if (typed().length) trying(() => ask(typed()))();
  }
}

// What is typed is judged before it is asked for: a plain word for what the model does not know.
let later = 0;
function judgeSoon() {
  clearTimeout(later);
  later = setTimeout(async () => {
    const texts = typed();
    if (!texts.length) { $('meaning').textContent = ''; return; }
    const { prompts } = await post('judge', { prompts: texts }).catch(() => ({ prompts: [] })); // told when they are asked for
    if (texts.join() !== typed().join()) return;
    const words = { known: 'known', near: 'near to what the model knows: check its mask', unfamiliar: 'unknown to the model' };
    $('meaning').replaceChildren(...prompts.flatMap((one, n) => {
      const meant = one.taken_as === 'free' ? `“${one.prompt}”` : one.name;
      return [n ? ' · ' : '', make('span', { className: one.verdict === 'known' ? '' : 'doubt' }, `${meant}: ${words[one.verdict]}`)];
    }));
  }, 250);
}
