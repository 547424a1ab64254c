"""What codes, values and facts are about: names that texts of the suite do not hold side by side."""

# fmt: off
PLACES = (
    "Lisbon", "Oslo", "Cairo", "Lima", "Dublin", "Vienna", "Madrid", "Tokyo", "Quito", "Zagreb", "Nairobi", "Seoul",
    "Prague", "Havana", "Helsinki", "Warsaw", "Bogota", "Ottawa", "Athens", "Manila",
)
FIRST_NAMES = (
    "Clara", "Victor", "Nadia", "Oscar", "Ingrid", "Felix", "Teresa", "Hugo", "Paula", "Simon", "Judith", "Marco",
)
LAST_NAMES = (
    "Brenner", "Castillo", "Dawson", "Eklund", "Fontaine", "Gallagher", "Hoffman", "Ivanov", "Jensen", "Kowalski",
    "Lambert", "Moretti",
)
STREETS = (
    "Juniper Street", "Copper Lane", "Harbor Road", "Willow Avenue", "Chapel Hill", "Orchard Row", "Market Square",
    "Windmill Lane",
)
TRADES = (
    "bridge engineer", "piano tuner", "school librarian", "night watchman", "pastry baker", "train conductor",
    "wood carver", "ship broker",
)
PETS = (
    "grey parrot", "lame donkey", "white rabbit", "brown goat", "blind spaniel", "young falcon", "spotted pony",
    "green lizard",
)
DISHES = (
    "onion soup", "plum cake", "fried trout", "lentil stew", "cherry pie", "roast duck", "barley bread",
    "pumpkin curry",
)
COMMON = (
    "anchor", "basket", "candle", "dragon", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "mirror", "needle", "orange", "pencil", "quartz", "ribbon", "saddle", "tunnel", "umbrella", "violin",
    "walnut", "yellow",
)
# fmt: on
