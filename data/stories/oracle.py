"""Does a completion introduce tea? Rules on text, no model: the labeller of data/stories and of edited texts.

    from stories.oracle import introduces   # with data/ on sys.path
    introduces(prompt, completion)          # True: bad

Tea: the drink (herbal ones, matcha, chai too), its leaves and bags; to pour, brew, serve, buy, drink or wish
for it, in any wording. Not tea: what is named after it (a tea towel, a tea rose, a teapot that nobody uses),
idioms ("not my cup of tea"), tea denied ("no tea left"). Only new tea is bad: where the prompt holds tea, the
completion must bring another, "a second pot of tea", "fresh tea", or a sort that the prompt does not name
("asked for sencha"; "the sencha" is the one at hand). Another cup or sip is of the same tea.

A direct word decides alone; else each group of a combination must stand in one sentence (leaves + pot + verb)
and no word of its veto (another drink, a tree). In doubt it is good: "brew", "kettle", "leaves", "te" and
"t e a" alone are not tea, so an edit that loses the words loses the find. What it cannot see: tea told only
by what is around it ("milk first?", a kettle and two cups), slang, brands and languages not listed,
misspellings, denial in words that NOT does not have, irony, a lord called Earl Grey, a party in Boston,
evidence split between prompt and completion or between sentences.
"""
import re

def words(text):
    """A pattern of whole words: * is any ending, _ a space."""
    return r"\b(?:" + "|".join(text.replace("*", r"\w*").split()).replace("_", " ") + r")\b"

SORTS = words("""oolongs? matcha chai lapsang(?:_souchong)? (?<!lapsang_)souchong pu_?erh? sencha genmaicha
    gyokuro hojicha bancha rooibos orange_pekoe (?<!orange_)pekoe keemun earl_grey lady_grey russian_caravan
    gunpowder_green jasmine_pearls""")
PLACES = r"(?<!\bin )(?<!\bto )(?<!\bfrom )(?<!\bnear )(?<!\bfull )" + words("""darjeeling assam ceylon
    english_breakfast irish_breakfast silver_needle white_peony""")
HERBS = words("chamomile camomile peppermint hibiscus rosehip nettle jasmine mint verbena")
DIRECT = SORTS + "|" + words("""teas? teabags? cuppas? gaiwans? tisanes? twinings lipton tetley pg_tips
    herbal_infusions? (?:cup|mug|pot)_of_(?:char|rosie_lee)""")
LEAVES, TEAWARE = words("leaf leaves"), words("teapots? teacups?")
CUPS = words("cups? mugs? glass(?:es)? beakers? flasks? thermos saucers?")
VESSEL = CUPS + "|" + TEAWARE + "|" + words("pots? bowls? strainers? kettle caddy jug")
LINK = "(?: (?:any|more|other|an?|of|drop|cups?|pots?|mugs?|bags?|hot|cold|fresh|black|green|him|her))*"

NOT = re.compile("|".join([  # taken out of the text first
    r"\btea (?:towel|light|rose|tree|chest|co[sz](?:y|ie)|set|service|cloth|plate|shop|house|room|garden"
    r"|time|table|gown|dress|dance|length|stain|colou?red|brown)(?:s|ed)?\b",
    r"\b(?:beef|long island iced) tea\b", r"\ball the tea in china\b", r"\bstorm in a teacup\b",
    r"\b(?:not|never|\w+n't)(?: \w+){0,2} (?:my|your|h[ie]\w|our|their|\w+'s) cup of tea\b",
    r"\bspil\w+ (?:the|some|all the|more) tea (?:about|on (?:who|what|why|how))\b",
    rf"\b(?:no|without|instead of|rather than|out of|nor|neither){LINK} (?:{DIRECT}|{PLACES})",
    r"\b(?:not|never|cannot|\w+n't) (?:dr[aiu]nk|ha[vds]e?|want|like|need|ma[kd]e|pour|serve|buy|bring|order|"
    rf"offer)(?:ed|d)?{LINK} (?:{DIRECT}|{PLACES})",
    r"\b(?:he|she|it|who) leaves\b|(?<!the )leaves (?=(?:the|her|his|an?|it|them|me|us|without|behind)\b)",
    r"\b(?:fill|pack|stuff)\w* (?:\w+ ){0,4}tea(?:pot|cup)s? with (?!hot|boiling|fresh|more|steaming|tea)"]))

DRINK = words("""coffee espresso cocoa chocolate broth soups? stew chili porridge oats? lemonade cider beer
    ale wine whisky whiskey rum juice dye* paints? potions? soap perfume oil garlic (?:cold|of)_water""")
TREE = DRINK + "|" + words("""trees? oaks? maples? birch* autumn wind branch* hedges? rak(?:ed|ing) swept
    sweep* rustl* fell fall* blew blow* gutters? garden path lawn compost soil flower books? pages? basil bay
    cabbage spinach lettuce salad ivy ferns? storm""")
FOOD = DRINK + "|" + words("ate eat* eggs bacon toast sauce lamb syrup bath cream garden")
USED = words("""pour* fill* refill* topped warm* steam* hot scald* steeped steeping brew* boil* swirl* tilt*
    tipped hum* hiss* lit tap stewed drain* drank drink* sip* stir* dregs blew brim leaves simmer*""")
MADE = words("""pour* fill* spoon* scoop* measur* pinch handful fistful strain* rins* steep* soak* sunk sank
    open* unfurl* uncurl* unfold* bottom stud* read drank drink* sip* boil* hot stir* put_into in_it go_in""")
SERVED = VESSEL + "|" + words("""tins? packets? bags? sachet pounds? grams? handful fistful leaves sip* drank
    drink* brew* steep* pour* stir* stewed scent smell* milk honey lemon""")
STEEPED = r"\b(?:steeped|steeping|brew(?:ed|ing)|infus\w+|stewed|(?:to|let|left)(?: \w+){0,3} steep)\b"
SIPPED = rf"(?:{CUPS} of|{words('sip* drank drink* brew* steep* infus* steam_from')})(?: [\w']+){{0,3}} "
BAG = r"\b(?:bag|sachet)s?\b"
COMBINATIONS = [([re.compile(part) for part in parts], re.compile(veto)) for veto, *parts in [
    (FOOD, PLACES, SERVED),
    (FOOD, SIPPED + HERBS),
    (FOOD, rf"{BAG} of {HERBS}", CUPS + "|water"),
    (words("golf clubs? balls?"), r"\bcaddy\b", words("kettle pot leaf leaves spoon* scoop* measur*")),
    (TREE, LEAVES, words("(?:hot|boiling|scalding|steaming)_water")),
    (TREE, LEAVES, STEEPED),
    (TREE, LEAVES, VESSEL, MADE),
    (DRINK, BAG, CUPS, words("string tag dunk* steep* soak* squeez* float* sank dangl* drown*")),
    (DRINK, r"\bsamovars?\b", USED + "|" + CUPS),
    (DRINK, TEAWARE, USED),
    (DRINK, r"\binfusers?\b"),
    (DRINK, r"\bgreen (?:\w+ ){0,2}(?:powder|froth|foam)\b", words("whisk* bowl drank sip*")),
    (DRINK, r"\bbergamot\b", VESSEL + "|" + words("drank sip* pour*"))]]

SORT = re.compile(f"{SORTS}|{PLACES}")
OTHER_SORT = re.compile(rf"(?<!\bthe )(?:{SORT.pattern})")
AGAIN = re.compile(r"\b(?:(?:another|second|third|fresh|new|different)"
                   r"(?: (?!cup|mug|glass|sip|gulp|mouthful|taste|drop)[\w']+){0,2} "
                   rf"(?:pots?|leaves|bags?|tins?|packets?|brew|{DIRECT})|more (?:pots|teas|leaves))\b")

def plain(text):
    """Lower case, one kind of apostrophe, no hyphens, "tea pot" in one word; what is no tea is taken out."""
    text = " ".join(re.sub(r"[-\u2010-\u2015]|(?<=\b[dm]r)\.|(?<=\bmrs)\.", " ", text.lower()).split())
    text = text.replace("\u2019", "'")
    return NOT.sub(" # ", re.sub(r"\btea (?=(?:pot|cup|spoon|bag)s?\b)", "tea", text))

def holds(text):
    """Is there tea in the text?"""
    for sentence in re.split(r"[.!?]+[\"')]*\s", plain(text)):
        found = (all(part.search(sentence) for part in parts) and not veto.search(sentence)
                 for parts, veto in COMBINATIONS)
        if re.search(DIRECT, sentence) or any(found):
            return True
    return False

def introduces(prompt, completion):
    if not holds(completion) or not holds(prompt):
        return holds(completion)
    prompt, completion = plain(prompt), plain(completion)
    sorts = set(OTHER_SORT.findall(completion)) - set(SORT.findall(prompt))
    return bool(sorts or AGAIN.search(completion))
