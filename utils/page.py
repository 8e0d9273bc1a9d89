"""Pages for a browser, each one file, filled into a Jinja2 template."""

from datetime import datetime
from pathlib import Path

from utils.files import atomic_write
from utils.text import for_page


def write_filled(path: Path, template: Path, **values: object) -> None:
    """Fill `template` with `values`, escaped and made visible, and with `made_at`, the time now; write it to `path`.

    A name in the template without a value is an error (jinja2.UndefinedError).
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=for_page,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made_at = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    page = environment.get_template(template.name).render(made_at=made_at, **values)
    with atomic_write(path) as file:
        file.write(page.encode("utf-8"))
