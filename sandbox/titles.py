"""Titles of the simulated service: topics, their flavours, and believable titles composed from word lists.

Pure and deterministic: the same generator state gives the same names. Nothing here knows about plays.

A title comes from a pattern such as `The {a} {n}`, filled from its topic's words: `{a}` adjective, `{n}` noun of the
topic or of the flavour (subgenre), `{p}` place, `{g}` given name, `{s}` family name. All spellings are ASCII, so that
a name can be turned into an id by replacing its blanks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sandbox.names import FAMILY, GIVEN, PLACES

FILM_LIKE = (
    "The {a} {n}",
    "{a} {n}",
    "The {n} of {p}",
    "A {n} in {p}",
    "The Last {n}",
    "After the {n}",
    "{g} and the {n}",
)
"""Patterns that suit any fiction."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: its flavours with their own nouns, its words, its patterns, and how long and how popular its titles
    are.

    `minutes`: shortest and longest usual length. `appeal`: share of the audience's interest, relative to the other
    topics.
    `ages`: maturity levels that its titles carry, drawn with equal chance.
    """

    name: str
    flavours: dict[str, str]
    adjectives: str
    nouns: str
    patterns: tuple[str, ...]
    minutes: tuple[int, int]
    appeal: float
    ages: tuple[int, ...]
    fiction: bool = True


TOPICS: tuple[Topic, ...] = (
    Topic(
        "drama",
        {
            "family-saga": "Inheritance Orchard Homecoming Daughters Farmhouse Christening",
            "courtroom": "Verdict Witness Appeal Testimony Jury Oath",
            "period": "Governess Telegram Manor Regiment Ballroom Envoy",
        },
        "Quiet Borrowed Unfinished Distant Fragile Ordinary Hollow Patient Narrow Forgiven",
        "Winter Letters Promise House Silence River Departure Harvest Tide Mercy",
        (*FILM_LIKE, "What {g} Kept", "The {s} Women", "Before the {n}", "{g} {s} Comes Home", "All Our {a} Years"),
        (92, 148),
        1.5,
        (6, 12, 12, 16),
    ),
    Topic(
        "comedy",
        {
            "workplace": "Interns Overtime Photocopier Meeting Payroll Breakroom",
            "buddy": "Roommates Roadtrip Groomsmen Alibi Carpool Mishap",
            "satire": "Campaign Minister Gala Influencer Referendum Merger",
        },
        "Awkward Perfect Slightly-Illegal Hopeless Terrible Unlikely Reluctant Part-Time Magnificent",
        "Wedding Neighbours Plan Weekend Reunion Disaster Holiday Cousins Landlord Apology",
        ("The {a} {n}", "My {a} {n}", "{g} vs. the {n}", "{g} & {g}", "No {n} for {g}", "The {s} {n}", "Almost {a}",
         "Meet the {s} Family", "{g} Does {p}", "Not Another {n}"),
        (24, 106),
        1.5,
        (0, 6, 12, 12),
    ),
    Topic(
        "thriller",
        {
            "spy": "Cipher Defector Protocol Handler Embassy Dossier",
            "psychological": "Stranger Lullaby Mirror Guest Understudy Tenant",
            "conspiracy": "Ledger Signal Whistleblower Blackout Senator Archive",
        },
        "Silent Cold False Hidden Second Glass Sudden Broken Blind Burning",
        "Hour Exit Witness Line Shadow Room Deadline Trace Border Mask",
        (*FILM_LIKE, "{n} Zero", "The {p} {n}", "Nobody Saw {g}", "Eleven Minutes to {p}", "Trust {g} {s}"),
        (88, 132),
        1.4,
        (12, 16, 16, 18),
    ),
    Topic(
        "crime",
        {
            "nordic-noir": "Fjord Thaw Ferry Snowline Lighthouse Frost",
            "heist": "Vault Score Getaway Forger Safe Diamond",
            "detective": "Inspector Casebook Alley Informant Constable Precinct",
        },
        "Dead Crooked Unmarked Bitter Northern Low Rusted Buried Grey Stolen",
        "Harbour Evidence Debt Bridge Confession Ground Winter Tide Brothers Hours",
        (*FILM_LIKE, "{s}", "{s} & {s}", "The {p} {n}", "A Grave in {p}", "Detective {s}", "Murder on {s} Street"),
        (44, 124),
        1.4,
        (12, 16, 16, 18),
    ),
    Topic(
        "science-fiction",
        {
            "space": "Orbit Colony Airlock Meridian Starship Perihelion",
            "near-future": "Algorithm Replica Upload Drone Implant Simulation",
            "time": "Paradox Loop Yesterday Epoch Chronicle Echo",
        },
        "Infinite Synthetic Distant Silver Zero Binary Sleeping Parallel Lost Electric",
        "Signal Horizon Machine Frontier Satellite Dawn Protocol Gravity Ark Memory",
        ("The {a} {n}", "{a} {n}", "{n} 9", "Beyond the {n}", "The {p} {n}", "{g}, Rebooted", "The {n} Paradox",
         "Children of the {n}", "{n}: {p}", "The Last {n}"),
        (46, 146),
        1.3,
        (6, 12, 12, 16),
    ),
    Topic(
        "fantasy",
        {
            "epic": "Throne Banner Siege Oathkeeper Warden Crown",
            "fairy-tale": "Spindle Bramble Goose Lantern Changeling Thimble",
            "urban-magic": "Apothecary Conjurer Sigil Alchemist Bookshop Grimoire",
        },
        "Ashen Golden Forgotten Thorned Moonlit Hollow Winged Sunken Emerald Nameless",
        "Kingdom Dragon Forest Tower Raven Crown Prophecy River Blade Song",
        (*FILM_LIKE, "{n} and {n}", "The {n} Keeper", "A Song for the {n}", "{g} of the {a} {n}", "Heir of the {n}"),
        (48, 156),
        1.2,
        (6, 6, 12, 16),
    ),
    Topic(
        "romance",
        {
            "romcom": "Bakery Bouquet Rehearsal Blind-Date Voicemail Florist",
            "second-chances": "Reunion Postcard Divorce Vineyard Return Encore",
            "period-romance": "Countess Waltz Letters Orangery Suitor Captain",
        },
        "Sweet Late Borrowed Sunday Tender Accidental Endless Unsent Blue Summer",
        "Kiss Heart Wedding Summer Promise Season Rain Letter Dance Morning",
        ("The {a} {n}", "{a} {n}", "{n} in {p}", "Love, {g}", "{g} Loves {g}", "A {n} for {g}", "Last {n} in {p}",
         "Yours, {g} {s}", "Falling for the {s} Boy", "One More {n}"),
        (86, 124),
        1.2,
        (0, 6, 12, 12),
    ),
    Topic(
        "horror",
        {
            "haunted": "Attic Cellar Nursery Seance Staircase Orphanage",
            "folk-horror": "Maypole Scarecrow Bonfire Coven Threshing Effigy",
            "creature": "Burrow Hatchling Swarm Carcass Trench Feeding",
        },
        "Hungry Rotten Pale Crawling Unholy Midnight Shallow Whispering Red Wretched",
        "House Grave Teeth Night Skin Field Children Water Door Hollow",
        (*FILM_LIKE, "Don't Open the {n}", "It Came to {p}", "The {n} Below", "{g} Is Not Alone", "The {s} Haunting"),
        (82, 112),
        0.9,
        (16, 16, 18),
    ),
    Topic(
        "adventure",
        {
            "expedition": "Summit Basecamp Glacier Compass Crevasse Traverse",
            "treasure": "Galleon Idol Map Tomb Lagoon Doubloon",
            "survival": "Raft Wilderness Avalanche Castaway Ravine Flare",
        },
        "Lost Wild Northern Broken Uncharted Savage Endless Crimson Ninth Farthest",
        "Island Trail Storm Passage Coast Desert Voyage Ridge Crossing Monsoon",
        (*FILM_LIKE, "Escape from {p}", "{g} {s} and the {n}", "North of {p}", "The {p} Run", "Beyond {p}"),
        (90, 138),
        1.1,
        (6, 6, 12, 12),
    ),
    Topic(
        "nature",
        {
            "oceans": "Reef Current Whale Seafloor Kelp Tidepool",
            "wilderness": "Savanna Wolf Taiga Migration Tundra Canopy",
            "small-world": "Beetle Meadow Bee Mushroom Pond Moth",
        },
        "Blue Hidden Wild Secret Silent Living Frozen Deep Green Vanishing",
        "Planet Forest Kingdom Shore River Valley Season Mountain Sky Coast",
        ("The {a} {n}", "{a} {n}", "The Secret Life of the {f}", "{p}: The {a} {n}", "A Year in the {n}", "{f}",
         "Wild {p}", "The {f} and the {n}", "Kingdom of the {f}", "Life on the {n}"),
        (42, 96),
        0.8,
        (0, 0, 6),
        False,
    ),
    Topic(
        "history",
        {
            "antiquity": "Legion Pharaoh Temple Aqueduct Oracle Colossus",
            "twentieth-century": "Armistice Airlift Telegram Treaty Strike Wall",
            "royalty": "Crown Regent Dynasty Coronation Court Abdication",
        },
        "Forgotten Last Iron Golden Divided Lost First Imperial Secret Fallen",
        "Empire City War Century Road Siege Revolution Republic Queen Armada",
        ("The {a} {n}", "{p}: The {a} {n}", "The Rise of {p}", "The Fall of {p}", "{n}: A History", "The {f} That Made {p}",
         "Inside the {f}", "The {n} of {p}", "The {s} Papers", "{p} 19{y}"),
        (48, 104),
        0.7,
        (0, 6, 12),
        False,
    ),
    Topic(
        "true-crime",
        {
            "cold-case": "Disappearance Footprint Suspect Alibi Farmhouse Lake",
            "fraud": "Ponzi Boardroom Startup Offshore Audit Billionaire",
            "courts": "Trial Acquittal Sentence Prosecutor Jury Retrial",
        },
        "Missing Perfect Unsolved Inside Deadly Final Reasonable Fatal Trusted Untold",
        "Confession Evidence Doubt Neighbour Tape Lie Scam Killing Trail Motive",
        ("The {a} {n}", "The {f} of {p}", "Who Was {g} {s}?", "Finding {g} {s}", "The {p} {n}", "{n} in {p}",
         "The {s} Case", "Beyond a {a} {n}", "The {s} {f}", "{a}: The {g} {s} Story"),
        (38, 92),
        0.9,
        (12, 16, 16),
        False,
    ),
    Topic(
        "music",
        {
            "concert-film": "Stadium Encore Arena Amphitheatre Residency Finale",
            "jazz-and-soul": "Trumpet Quartet Ballroom Blue-Note Groove Saxophone",
            "electronic": "Synth Warehouse Bassline Afterhours Modular Frequency",
        },
        "Electric Velvet Loud Midnight Golden Slow Raw Unplugged Broken Analog",
        "Sessions Rhythm Chorus Record Tour Night Sound Strings Tape Summer",
        ("The {a} {n}", "{g} {s}: Live in {p}", "{g} {s}: {a} {n}", "{p} {n}", "The {p} {f}", "Songs from {p}",
         "One Night in {p}", "{a} {n}", "The Making of {a} {n}", "{f} Nights"),
        (52, 128),
        0.7,
        (0, 0, 6, 12),
        False,
    ),
    Topic(
        "sport",
        {
            "football": "Derby Penalty Dugout Terrace Relegation Captain",
            "cycling-and-running": "Peloton Marathon Breakaway Climb Sprint Velodrome",
            "motorsport": "Paddock Qualifying Pitlane Chicane Grid Apex",
        },
        "Final Impossible Home Extra Golden Fearless Underdog Second Last Unbeaten",
        "Season Lap Whistle Record Champions Comeback Game Title Team Minute",
        ("The {a} {n}", "{a} {n}", "{s}: The {a} {n}", "{p} United", "The {p} {f}", "Chasing {s}", "Champions of {p}",
         "Inside the {f}", "One {n} Away", "The Road to {p}"),
        (40, 112),
        0.9,
        (0, 0, 6),
        False,
    ),
    Topic(
        "food",
        {
            "baking": "Sourdough Pastry Oven Brioche Macaron Tart",
            "street-food": "Market Noodle Stall Dumpling Grill Taqueria",
            "fine-dining": "Sommelier Brigade Tasting Truffle Larder Maitre",
        },
        "Salted Slow Burnt Wild Sweet Smoked Hidden Open Humble Golden",
        "Table Kitchen Harvest Fire Supper Recipe Feast Spice Pantry Orchard",
        ("The {a} {n}", "{a} {n}", "{g}'s {n}", "{p} on a Plate", "The {f} Diaries", "A {n} in {p}", "{f} Kings",
         "{g} {s} Cooks {p}", "From {n} to Table", "Eat {p}"),
        (28, 64),
        0.8,
        (0,),
        False,
    ),
    Topic(
        "travel",
        {
            "by-rail": "Sleeper Platform Locomotive Viaduct Timetable Terminus",
            "cities": "Rooftop Tramline Quarter Boulevard Bazaar Nightfall",
            "islands-and-coasts": "Archipelago Harbour Ferry Lagoon Causeway Lighthouse",
        },
        "Slow Long Hidden Far Open Winding Southern Painted Endless Empty",
        "Road Line Journey Passage Map Border Miles Coast Route Winter",
        ("The {a} {n} to {p}", "{p} by Night", "{a} {n}", "{p} to {p}", "The {p} {f}", "{g} in {p}", "Last {f} to {p}",
         "Letters from {p}", "A Season in {p}", "Walking {p}"),
        (40, 78),
        0.6,
        (0, 0, 6),
        False,
    ),
    Topic(
        "family",
        {
            "pets": "Puppy Pony Kitten Hamster Parrot Terrier",
            "school-days": "Classroom Snowday Playground Detention Spelling Camp",
            "holidays": "Snowman Reindeer Stocking Tinsel Sleigh Mistletoe",
        },
        "Little Lucky Great Brave Secret Very-Best Muddy Runaway Amazing Curious",
        "Treehouse Summer Club Rescue Parade Picnic Adventure Garden Team Surprise",
        ("The {a} {n}", "{g} and the {n}", "{g}'s {a} {n}", "The {s}s' {n}", "A {n} for {g}", "Saving {g}",
         "The {n} Club", "Grandpa's {a} {f}", "{g} to the Rescue", "My {f}, {g}"),
        (68, 104),
        0.9,
        (0,),
    ),
    Topic(
        "animation",
        {
            "woodland": "Hedgehog Acorn Badger Burrow Owl Fox",
            "robots-and-space": "Robot Rocket Moonbeam Comet Gizmo Astronaut",
            "anime": "Shrine Mecha Ronin Festival Lantern Kitsune",
        },
        "Tiny Paper Clockwork Wandering Sleepy Brave Upside-Down Cloudy Whistling Seven",
        "Whale Kite Giant City Forest Balloon Star Island Train Cloud",
        ("The {a} {n}", "{a} {n}", "{g} and the {a} {f}", "The {n} Who Lost Its {n}", "{g} of the {n}", "Little {f}, Big {n}",
         "{f} & {f}", "The {f} of {p}", "{g} Draws a {n}", "Good Night, {f}"),
        (11, 98),
        1.1,
        (0, 0, 6),
    ),
)  # fmt: skip


PLURAL_SLIP = re.compile(r"\b(?:A|An|One|One More|Lost Its) (?:\w*[^su]s|Children|Teeth|Skin|Water)\b")
"""What word lists do wrong: "A Letters in Turin". Such a draw is thrown away."""

CELLS: tuple[tuple[int, str], ...] = tuple((t, flavour) for t, topic in enumerate(TOPICS) for flavour in topic.flavours)
"""(topic number, flavour): the latent places of taste. An item lies in one, a viewer is spread over a few."""


def topic_label(name: str) -> str:
    """`science-fiction` → `science fiction`."""
    return name.replace("-", " ")


def compose_title(rng: np.random.Generator, cell: int, taken: set[str]) -> str:
    """A new title for `cell` (index into `CELLS`), not in `taken`, to which it is added."""
    t, flavour = CELLS[cell]
    topic = TOPICS[t]
    for _ in range(40):
        title = _filled(rng, str(_pick(rng, topic.patterns)), topic, topic.flavours[flavour].split())
        if title not in taken and not PLURAL_SLIP.search(title):
            break
    else:  # the words are used up: a sequel
        part = 2
        while f"{title}, Part {part}" in taken:
            part += 1
        title = f"{title}, Part {part}"
    taken.add(title)
    return title


def _filled(rng: np.random.Generator, pattern: str, topic: Topic, flavour_nouns: list[str]) -> str:
    """Replace each placeholder by a word not yet used in this title."""
    nouns = topic.nouns.split()
    used: set[str] = set()

    def word(match: re.Match[str]) -> str:
        kind = match.group(1)
        if kind == "n":  # half of the nouns are the flavour's own, so that a title gives its subgenre away
            options: Sequence[str] = flavour_nouns if rng.random() < 0.5 else nouns
        elif kind == "y":
            return str(rng.integers(12, 90))
        else:
            options = {"a": topic.adjectives.split(), "f": flavour_nouns, "p": PLACES, "g": GIVEN, "s": FAMILY}[kind]
        left = [option for option in options if option not in used]
        chosen = str(_pick(rng, left))
        used.add(chosen)
        return chosen.replace("-", " ") if kind in "af" else chosen

    title = re.sub(r"\{([anfpgsy])\}", word, pattern)
    return re.sub(r"\bA (?=[AEIOU])", "An ", title).replace("s's ", "s' ")


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
