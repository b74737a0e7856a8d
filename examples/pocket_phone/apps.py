"""The phone's conventions, as data: five categories, fourteen apps, and what each of them calls things.

A category gives its apps the same intents, the same default plans and the same default labels. An app then goes its own
way in some labels (`labels`), in which of two elements it prefers (`flips`, by slot number) and in the order in which it
does a task (`reversed`). What is not overridden is what siblings share.

A plan is a list of slots. A slot `bag|heart` means: use the bag when it is on the screen, else the heart. `TYPE` types the
item of the request. A label is an action with its name: `t:` a button known by its text, `f:` by its function, else the
whole action as it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from examples.pocket_phone.glyphs import Colour

TYPE = "TYPE"


@dataclass(frozen=True)
class Slot:
    """One decision: `preferred` when it is on the screen, else `fallback`."""

    preferred: str
    fallback: str


Plan = tuple[Slot | str, ...]
"""The slots of a task in order; the string `TYPE` stands for typing the item."""


@dataclass(frozen=True)
class Intent:
    """A task that users ask for: how they say it (with `{item}`), and how the category does it by default."""

    name: str
    sentences: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True)
class Category:
    name: str
    display_name: str
    items: tuple[str, ...]
    labels: Mapping[str, str]
    intents: tuple[Intent, ...]


@dataclass(frozen=True)
class App:
    """One app: its looks, and where it departs from its category."""

    name: str
    display_name: str
    category: str
    emblem: str
    colour: Colour
    labels: Mapping[str, str] = field(default_factory=dict)
    flips: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reversed: frozenset[str] = frozenset()


def _plan(text: str) -> Plan:
    slots: list[Slot | str] = []
    for part in text.split():
        preferred, _, fallback = part.partition("|")
        slots.append(Slot(preferred, fallback) if fallback else part)
    return tuple(slots)


def _intent(name: str, plan: str, *sentences: str) -> Intent:
    return Intent(name, sentences, _plan(plan))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _labels(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(", "))


CATEGORIES: dict[str, Category] = {
    category.name: category
    for category in (
        Category(
            "shopping",
            "Shopping",
            _words("running shoes, blue jacket, desk lamp, tent, gold ring, phone case, yoga mat, red dress, coffee mill, "
                   "wool scarf, football, rain coat, backpack, toy train, sun hat"),
            _labels("bag=t:Add to cart, heart=t:Wishlist, star=t:Reviews, tag=t:Offers, gift=t:Gift wrap, card=t:Checkout, "
                    "lens=f:Search, list=t:Filter, bell=f:Notify, toggle=t:Express, arrow=Scroll down"),
            (
                _intent("buy", "bag|heart toggle|gift card|list", "buy the {item}", "order the {item} for me",
                        "i need the {item}, get it"),
                _intent("save", "heart|list bell|tag", "save the {item} for later", "remember the {item}",
                        "keep an eye on the {item}"),
                _intent("search", "lens|list TYPE star|arrow", "search for the {item}", "look up the {item}",
                        "see if there is the {item}"),
                _intent("deal", "tag|arrow bag|card", "find a discount on the {item}", "get the {item} cheaper",
                        "is there a deal on the {item}"),
                _intent("review", "star|arrow heart|gift", "check what buyers say about the {item}", "is the {item} any good",
                        "read opinions on the {item}"),
            ),
        ),
        Category(
            "traveling",
            "Traveling",
            _words("Rome, Paris, Oslo, the airport, Lisbon, the old town, Vienna, the beach, Madrid, the museum, Cairo, Kyoto"),
            _labels("pin=t:Directions, car=t:Ride, flag=t:Start, star=t:Save place, lens=f:Search, card=t:Pay, tag=t:Fares, "
                    "clock=t:Departure, person=t:Travellers, share=f:Send, key=t:Rooms, arrow=Scroll down, toggle=t:Return"),
            (
                _intent("go", "pin|car clock|flag", "take me to {item}", "show the way to {item}", "i must get to {item}"),
                _intent("stay", "key|tag person|card", "find a room in {item}", "i will sleep near {item}",
                        "get a hotel close to {item}"),
                _intent("book", "tag|clock toggle|person card|arrow", "book a trip to {item}", "reserve seats to {item}",
                        "plan a journey to {item}"),
                _intent("search", "lens|pin TYPE star|arrow", "search for {item}", "look {item} up on the map",
                        "where is {item}"),
                _intent("meet", "share|flag car|pin", "tell my friends that i go to {item}", "meet everyone at {item}",
                        "send the route to {item}"),
            ),
        ),
        Category(
            "office",
            "Office",
            _words("budget, weekly report, invoice, team plan, contract, travel notes, slides, meeting minutes, offer letter, "
                   "time sheet, press text, survey"),
            _labels("mail=t:Inbox, pen=f:Compose, folder=t:Move, share=f:Share, star=f:Star, bin=f:Delete, person=t:Add people, "
                    "plus=f:New, lens=f:Search, flag=t:Important, clock=t:Schedule, arrow=Scroll down, toggle=t:Offline"),
            (
                _intent("share", "share|person pen|mail", "share the {item} with the team", "let the others see the {item}",
                        "give everyone the {item}"),
                _intent("file", "folder|arrow star|flag", "file the {item} away", "put the {item} where it belongs",
                        "tidy up the {item}"),
                _intent("remove", "bin|folder flag|clock", "get rid of the {item}", "throw the {item} out",
                        "clear the old {item}"),
                _intent("search", "lens|arrow TYPE star|folder", "search for the {item}", "where did i put the {item}",
                        "find the {item}"),
                _intent("new", "plus|pen toggle|share person|mail", "start a new {item}", "create the {item}",
                        "begin the {item} of this month"),
            ),
        ),
        Category(
            "lives",
            "Lives",
            _words("morning run, dentist, school bus, night shift, tea time, birthday call, gym, rubbish day, dog walk, pills, "
                   "piano lesson, nap"),
            _labels("clock=t:Set time, bell=t:Alarm, plus=f:Add, toggle=f:Turn on, bin=f:Delete, pen=t:Edit, list=t:Repeat, "
                    "note=t:Sound, flag=t:Label, star=t:Priority, arrow=Scroll down"),
            (
                _intent("wake", "plus|bell clock|list toggle|note", "wake me for the {item}", "do not let me miss the {item}",
                        "ring before the {item}"),
                _intent("cancel", "bin|arrow list|flag", "cancel the {item}", "forget about the {item}",
                        "there is no {item} any more"),
                _intent("name", "flag|pen TYPE bell|star", "set one up and call it {item}", "add the name {item}",
                        "label it {item}"),
                _intent("repeat", "list|clock toggle|bell", "make the {item} happen every day", "repeat the {item}",
                        "the {item} is every week"),
                _intent("change", "pen|clock note|star", "move the {item} to a later hour", "change the {item}",
                        "the {item} starts at another time"),
            ),
        ),
        Category(
            "entertainment",
            "Entertainment",
            _words("jazz night, lemon cake, space film, pasta, cat video, noodle soup, guitar course, apple pie, comedy show, "
                   "fish curry, rock concert, pancakes"),
            _labels("play=t:Play, heart=t:Like, list=t:Playlist, share=f:Share, lens=f:Search, star=t:Rate, note=t:Audio, "
                    "cup=t:Recipe, person=t:Channel, bell=t:Subscribe, plus=f:Save, arrow=Scroll down, toggle=t:Captions"),
            (
                _intent("watch", "play|cup toggle|note", "show me the {item}", "play the {item}", "i want to watch the {item}"),
                _intent("keep", "plus|list heart|star", "keep the {item} for the weekend", "put the {item} aside",
                        "add the {item} to my things"),
                _intent("search", "lens|person TYPE play|arrow", "search for a {item}", "look for some {item}",
                        "find a good {item}"),
                _intent("follow", "person|share bell|heart", "follow whoever made the {item}", "i like the author of the {item}",
                        "more from the makers of the {item}"),
                _intent("send", "share|arrow note|person star|cup", "send the {item} to a friend", "pass the {item} on",
                        "let mum see the {item}"),
            ),
        ),
    )
}  # fmt: skip


def _app(
    name: str, display: str, category: str, emblem: str, colour: Colour, labels: str, flips: str, reversed_: str
) -> App:
    slots: dict[str, tuple[int, ...]] = {}
    for part in flips.split():
        intent, _, numbers = part.partition(":")
        slots[intent] = tuple(int(number) for number in numbers)
    return App(name, display, category, emblem, colour, _labels(labels), slots, frozenset(reversed_.split()))


APPS: dict[str, App] = {
    app.name: app
    for app in (
        _app("adidas", "adidas", "shopping", "flag", (25, 25, 30),
             "bag=t:Add to bag, heart=t:Favourites, list=t:Sort, toggle=t:Members, tag=t:Outlet", "save:0 deal:1", "buy"),
        _app("amazon", "Amazon", "shopping", "bag", (235, 140, 20),
             "card=t:Buy now, star=t:Ratings, toggle=t:Prime, gift=t:Gift options, arrow=f:See more", "buy:0 review:1", "save"),
        _app("decathlon", "Decathlon", "shopping", "star", (0, 95, 200),
             "bag=t:To basket, tag=t:Last chance, lens=f:Find, bell=f:Back in stock, card=t:Pay", "search:0 deal:0 save:1",
             "review"),
        _app("ebay", "eBay", "shopping", "tag", (220, 30, 60),
             "bag=t:Place bid, heart=t:Watch, star=t:Seller rating, list=t:Refine, bell=f:Follow", "buy:2 review:0 deal:1",
             "deal"),
        _app("etsy", "Etsy", "shopping", "gift", (240, 90, 30),
             "heart=t:Favorite, gift=t:Personalise, tag=t:Coupons, lens=f:Explore, arrow=f:More like this", "buy:1 save:01",
             "review"),
        _app("google_maps", "Google Maps", "traveling", "pin", (40, 160, 80),
             "pin=t:Route, star=t:Starred, card=t:Tickets, clock=t:Leave at, share=f:Share location, key=t:Hotels",
             "go:1 stay:1 search:0", "meet"),
        _app("flipkart", "Flipkart", "traveling", "car", (40, 110, 240),
             "tag=t:Best price, car=t:Cabs, person=t:Guests, flag=t:Status, toggle=t:Round trip, lens=f:Explore",
             "go:0 book:0 meet:1", "stay"),
        _app("gmail", "Gmail", "office", "mail", (210, 60, 50),
             "folder=t:Archive, share=f:Forward, pen=f:Reply, clock=t:Snooze, plus=f:Draft", "share:1 file:0 new:2", "remove"),
        _app("google_drive", "Google Drive", "office", "folder", (250, 190, 20),
             "mail=t:Recent, pen=f:Rename, share=f:Copy link, bin=f:Move to trash, person=t:Manage access",
             "remove:0 search:0 new:1", "file"),
        _app("calendar", "Calendar", "office", "clock", (60, 130, 230),
             "clock=t:Propose time, star=f:Tasks, person=t:Invite guests, plus=f:Create, flag=t:Busy",
             "share:0 file:1 remove:1", "share"),
        _app("clock", "Clock", "lives", "bell", (90, 60, 160),
             "clock=t:Hours, plus=f:Add alarm, note=t:Ringtone, toggle=f:Switch on, pen=t:Adjust",
             "wake:0 cancel:1 repeat:0", "change"),
        _app("reminder", "Reminder", "lives", "list", (0, 150, 150),
             "bell=t:Remind me, bin=f:Mark done, list=t:Every day, flag=t:Title, star=t:Urgent",
             "wake:1 name:0 change:0", "cancel"),
        _app("youtube", "YouTube", "entertainment", "play", (255, 0, 0),
             "plus=f:Watch later, heart=t:Thumbs up, cup=t:Shorts, note=t:Volume, list=t:Queue, person=t:Creator",
             "keep:1 follow:0 send:0", "watch"),
        _app("kitchen_stories", "Kitchen Stories", "entertainment", "cup", (150, 195, 70),
             "play=t:Start cooking, star=t:Review, bell=t:Follow, share=f:Send, list=t:Shopping list, toggle=t:Servings",
             "watch:0 keep:0 search:2", "follow"),
    )
}  # fmt: skip


def apps_of(adapter_id: str) -> tuple[App, ...]:
    """Return the apps whose episodes make up the dataset `adapter_id`: one app, or all apps of a category."""
    if adapter_id in APPS:
        return (APPS[adapter_id],)
    return tuple(app for app in APPS.values() if app.category == adapter_id)


ADAPTER_IDS: tuple[str, ...] = (*sorted(APPS), *sorted(CATEGORIES))
"""The 19 datasets, and so the 19 adapters."""


def action_of(app: App, glyph: str) -> str:
    """Return the action that uses `glyph` in `app`, in the words of that app."""
    label = app.labels.get(glyph) or CATEGORIES[app.category].labels[glyph]
    kind, _, name = label.partition(":")
    return {"t": click_text(name), "f": click_function(name)}.get(kind, label)


def click_text(name: str) -> str:
    return f'Click on button with the text "{name}"'


def click_function(name: str) -> str:
    return f'Click on button with the function of "{name}"'


def plan_of(app: App, intent: Intent) -> Plan:
    """Return how `app` does `intent`: the category's plan, with this app's preferences and order."""
    flips = app.flips.get(intent.name, ())
    slots: list[Slot | str] = [
        Slot(slot.fallback, slot.preferred) if isinstance(slot, Slot) and number in flips else slot
        for number, slot in enumerate(intent.plan)
    ]
    if intent.name in app.reversed:
        slots.reverse()
    return tuple(slots)
