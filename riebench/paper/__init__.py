"""Tables and figures of the paper, measured or read from stored results.

A recipe is a module with two functions, entered by name in `riebench.paper.registry.RECIPES`:

    make(job: PaperJob) -> Artefact                     measures or reads; tables, configurations, a short reading
    draw(figure: Figure, artefact: Artefact) -> None    draws the artefact's rows on an empty figure and sets its size

`make` may take long. Its measurements go through `job.cached_rows(name, key, compute)`, which stores finished rows in
`OUT/data/parts/` and returns them when the same key is requested again, so that a stopped run resumes and a second run
measures nothing. `draw` sees the artefact alone, so that figures can be drawn from stored data.

    Artefact(name, title, shows, tables=(Table(...),), settings={...}, notes=(...), alt=...)
    Table(name, title, columns=(Column(...),), rows=({...},), views=(View(...),))

Rows are long and plain (words, whole numbers, floats, None) and go to CSV as they are. A `Column` with
`interval=True` stands for three keys, NAME, NAME_low and NAME_high (see `estimate_cells`); it prints as
"0.81 [0.7, 0.9]". Markdown and LaTeX print the rows, or the views of a table that has any: a `View` spreads the values
of one column out as columns. Everything that affects a number belongs in `settings`.

`riebench.paper.output` writes these files below OUT:

    NAME.md  tables/NAME[-TABLE].csv  tables/NAME[-TABLE].tex  figures/NAME.svg  figures/NAME.png  data/NAME.json
    README.md   all artefacts as one document

Numbers are rounded to six significant digits when they are stored, so that the same data give the same bytes.
"""
