"""The chapter of queries and what they found: pictures to look at, recordings and videos to play."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sensorium.engine.contract import Card, Gallery, Shown
from sensorium.engine.report_media import LARGE, SMALL, Media, Picture
from sensorium.engine.results import Result

OPEN_CARDS = 4  # of a gallery; the others unfold


def gallery_chapter(results: Sequence[Result], media: Media) -> str:
    """The galleries of the first result that has any; those of the others (baselines) unfold. Empty without any."""
    blocks: list[str] = []
    for result in results:
        shown = "".join(_gallery(result, gallery, media) for gallery in result.evaluation.galleries if gallery.cards)
        if shown and blocks:
            shown = f'<details class="more"><summary>Found by {escape(result.title)}</summary>{shown}</details>'
        blocks += [shown] if shown else []
    return "".join(blocks)


def _gallery(result: Result, gallery: Gallery, media: Media) -> str:
    card_of = _large_card if gallery.large else _card
    cards = [card_of(card, media) for card in gallery.cards]
    first, rest = cards[:OPEN_CARDS], cards[OPEN_CARDS:]
    more = ""
    if rest:
        more = f'<details class="more"><summary>{len(rest)} more</summary>{"".join(rest)}</details>'
    note = f'<p class="note">{escape(gallery.note)}</p>' if gallery.note else ""
    title = f"<h3>{escape(gallery.title)} <small>{escape(result.title)}{_tally(gallery)}</small></h3>"
    return f'<section class="gallery">{title}{note}{"".join(first)}{more}</section>'


def _tally(gallery: Gallery) -> str:
    judged = [card for card in gallery.cards if any(hit.right is not None for hit in card.found)]
    if not judged or gallery.large:  # what stands below a large picture is no ranking
        return ""
    right = sum(1 for card in judged if card.found[0].right)
    return f" · {right} of {len(judged)} right in first place"


def _card(card: Card, media: Media) -> str:
    hits = "".join(_hit(place, hit, media) for place, hit in enumerate(card.found, start=1))
    found = f'<ol class="hits">{hits}</ol>' if hits else '<p class="note">nothing was found</p>'
    return (
        f'<article class="card"><div class="query"><span class="tag">query</span>{_shown(card.query, media)}'
        f"{_verdict(card)}</div>{found}</article>"
    )


def _large_card(card: Card, media: Media) -> str:
    """The picture as wide as the page, and below it whatever belongs to it."""
    hits = "".join(_hit(place, hit, media) for place, hit in enumerate(card.found, start=1))
    found = f'<ol class="hits">{hits}</ol>' if hits else ""
    return f'<article class="card large"><div class="query">{_shown(card.query, media, LARGE)}</div>{found}</article>'


def _verdict(card: Card) -> str:
    """Where the first right hit stands, in words."""
    if all(hit.right is None for hit in card.found):
        return ""
    place = next((place for place, hit in enumerate(card.found, start=1) if hit.right), None)
    if place is None:
        return f'<p class="verdict wrong">✗ not in the first {len(card.found)}</p>'
    return f'<p class="verdict {"right" if place == 1 else "later"}">✓ found in place {place}</p>'


def _hit(place: int, hit: Shown, media: Media) -> str:
    kind, mark = {
        True: ("right", '<span class="mark right">✓ right</span>'),
        False: ("wrong", '<span class="mark wrong">✗ wrong</span>'),
        None: ("open", ""),
    }[hit.right]
    score = "" if hit.score is None else f'<span class="score" title="score">{hit.score:.3f}</span>'
    return (
        f'<li class="hit {kind}"><span class="place" aria-label="place {place}">{place}</span>'
        f'{_shown(hit, media)}<p class="line">{mark}{score}</p></li>'
    )


def _shown(shown: Shown, media: Media, limits: tuple[int, int] = SMALL) -> str:
    """Picture, players and caption; a caption that stands alone is shown large."""
    seen = [] if shown.image is None else [_picture(shown, media.picture(shown.image, limits))]
    if shown.audio is not None:
        seen.append(_player(shown, shown.audio, media))
    if shown.video is not None:
        seen.append(_film(shown, shown.video, media))
    if not seen:
        return f'<p class="words">{escape(shown.caption)}</p>'
    return f'{"".join(seen)}<p class="caption">{escape(shown.caption)}</p>'


def _picture(shown: Shown, picture: Picture | None) -> str:
    if picture is None:
        return f'<div class="lost">picture cannot be read: {escape(_file_name(shown.image or ""))}</div>'
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{picture.uri}" {size} alt="picture: {escape(shown.caption)}">'


def _player(shown: Shown, path: str, media: Media) -> str:
    sound = media.sound(path)
    if sound is None:
        return f'<div class="lost">recording cannot be read: {escape(_file_name(path))}</div>'
    length = f"{sound.seconds:.1f} s"
    return (
        f'<div class="player"><button type="button" aria-label="play recording: {escape(shown.caption)}, {length}">'
        f"{_wave(sound.peaks)}</button><span>{length}</span>"
        f'<audio controls preload="none" src="{sound.uri}"></audio></div>'
    )


def _film(shown: Shown, path: str, media: Media) -> str:
    film = media.film(path)
    if film is None:
        return f'<div class="lost">video cannot be read: {escape(_file_name(path))}</div>'
    return (
        f'<video controls loop muted playsinline preload="metadata" width="{film.width}" height="{film.height}" '
        f'aria-label="play video: {escape(shown.caption)}, {film.seconds:.1f} s" src="{film.uri}"></video>'
    )


def _wave(peaks: Sequence[float]) -> str:
    """Loudness over time as upright strokes; drawn twice, the upper one is uncovered while playing."""
    strokes = "".join(
        f"M{2 * i + 1} {12 - 11 * peak - 0.5:.1f}V{12 + 11 * peak + 0.5:.1f}" for i, peak in enumerate(peaks)
    )
    return (
        f'<svg class="wave" viewBox="0 0 {2 * len(peaks)} 24" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{strokes}"/><path class="played" d="{strokes}"/></svg>'
    )


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]
