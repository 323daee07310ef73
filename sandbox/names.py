"""Places and people of the simulated service. All spellings are ASCII, so that a name turns into an id without loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACES = _words(
    "Lisbon Bergen Marrakesh Kyoto Trieste Galway Oaxaca Tallinn Valparaiso Hobart Dakar Naples Tromso Savannah "
    "Jaipur Leith Odessa Montreal Zanzibar Seville Krakow Busan Patagonia Malmo Ghent Dresden Havana Reykjavik Cadiz "
    "Bristol Samarkand Ostend Palermo Salem Whitby Turin Cusco Hanoi Lagos Belgrade"
)
GIVEN = _words(
    "Ana Milo Ines Theo Sadia Jonas Priya Oskar Leila Mateo Freya Kofi Yuki Nadia Emil Rosa Tariq Clara Diego Anouk "
    "Farid Greta Hugo Imani Jasper Keiko Lars Maren Nils Odile Paolo Quinn Renata Samir Tilda Ugo Vera Wanda Xavier "
    "Yara Zoe Amara Bruno Celia Dario Elif Fiona Gustav Hana Ivo June Karim Lucia Magnus Noor Otto Petra Rafael Selma "
    "Tomas"
)
FAMILY = _words(
    "Ruiz Okafor Lindqvist Tanaka Moreau Haddad Novak Castellano Byrne Sharma Ferreira Kowalski Achterberg Demir "
    "Eriksen Fontaine Grady Hashimoto Ibarra Jensen Kaplan Laurent Mbeki Nakamura Oyelaran Petrov Quist Rahman "
    "Sandoval Thorne Ueda Vasquez Weber Ximenes Yilmaz Zielinski Abara Bellini Cho Dufour Engel Falk Garnier Holm "
    "Ivanova Jimenez Karlsson Lombardi Marchetti Nielsen Osei Pham Rossi Soler Tremblay Varga Whitlock Andrade "
    "Bishara Crane Delacroix Eklund Faulkner Gallo"
)


def people(rng: np.random.Generator, taken: set[str]) -> Iterator[str]:
    """Endless `Given Family` names, none in `taken`, to which they are added."""
    while True:
        given, family = GIVEN[int(rng.integers(len(GIVEN)))], FAMILY[int(rng.integers(len(FAMILY)))]
        name = f"{given} {family}"
        if name in taken:  # 3,840 pairs; beyond that a middle initial, as credits do it
            name = f"{given} {chr(65 + int(rng.integers(26)))}. {family}"
        if name not in taken:
            taken.add(name)
            yield name
