"""The paper's tables and figures, one recipe each: measured or read from stored results, then written for everybody.

A recipe is a module with two functions, listed lazily in `riebench.paper.registry.RECIPES`:

    make(job: PaperJob) -> Artefact                     measures or reads; tables, settings, a short reading
    draw(figure: Figure, artefact: Artefact) -> None    puts the artefact's rows on an empty figure (it sets the size)

`make` may take long: what it measures goes through `job.part(name, key, compute)`, which keeps finished rows in
`OUT/data/parts/` and gives them back when the same key is asked for again, so that a run that was stopped goes on and a
second run measures nothing. `draw` sees the artefact alone, so that figures can be drawn from stored data.

    Artefact(name, title, shows, tables=(Table(...),), settings={...}, notes=(...), alt=...)
    Table(name, title, columns=(Column(...),), rows=({...},), views=(View(...),))

Rows are long and plain (words, whole numbers, floats, None) and go to CSV as they are. A `Column` with
`interval=True` stands for three keys, NAME, NAME_low and NAME_high (see `estimated`); it prints as "0.81 [0.7, 0.9]".
Markdown and LaTeX print the rows, or, where a table has views, those: a `View` spreads one column's values out as
columns. Everything that moves a number belongs in `settings`.

What is written (`riebench.paper.output`), below OUT:

    NAME.md  tables/NAME[-TABLE].csv  tables/NAME[-TABLE].tex  figures/NAME.svg  figures/NAME.png  data/NAME.json
    README.md   all artefacts as one document

Numbers are rounded to six significant digits when they are stored; the same data give the same bytes, always.
"""
