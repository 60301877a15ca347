"""Things to draw for pairs: 48 parts, innocent alone, beside the 18 things of proxy_images.

    from proxy_pairs.draw import ALL, shown
    image = shown("kettle", "red", random.Random(0))  # 2 ms

Another Pillow may move a pixel: it rasterises the shapes.
"""
from PIL import Image

from proxy_images.draw import BROWN, COLORS, FINE, GREEN, INK, ORANGE, SIDE, STEAM, TAN, THINGS, WHITE
from proxy_images.draw import Pen, arc, both, polar

CREAM = (250, 238, 206)

# ---- tea: what is steeped; what holds it

def leaf(pen):
    pen.line((0, .98), (0, .5), fill=GREEN, width=.1)
    pen.area(*both((0, -.98), (.34, -.6), (.5, -.1), (.4, .36), (0, .66)), curved=True)
    pen.line((0, -.7), (0, .66), fill=pen.dark)
    for y in (-.4, -.05, .3):
        for side in (-1, 1):
            pen.line((0, y + .2), (.3 * side, y - .08), fill=pen.dark)

def lemon(pen):
    """A slice."""
    pen.area(*arc(0, 0, .92, .92))
    pen.dot(0, 0, .76, CREAM)
    for k in range(6):
        pen.patch(polar(.1, 60 * k + 30), polar(.66, 60 * k + 8), polar(.72, 60 * k + 30),
                  polar(.66, 60 * k + 52))

def mint(pen):
    pen.line((0, 1), (0, -.5), fill=GREEN, width=.1)
    for y, r in ((.62, .9), (.12, .74), (-.32, .52)):
        for side in (-1, 1):
            pen.area((0, y), (.4 * r * side, y - .46 * r), (r * side, y - .34 * r), (.6 * r * side, y),
                     curved=True)
    pen.area((0, -.4), (.18, -.72), (0, -1), (-.18, -.72), curved=True)

def sugar(pen):
    """Three cubes."""
    for x, y in ((-.46, .44), (.46, .44), (0, -.4)):
        pen.area((x - .4, y - .2), (x, y), (x, y + .48), (x - .4, y + .28))
        pen.area((x + .4, y - .2), (x, y), (x, y + .48), (x + .4, y + .28), fill=pen.dark)
        pen.area((x, y - .4), (x + .4, y - .2), (x, y), (x - .4, y - .2), fill=pen.light)

def kettle(pen):
    pen.rope(*arc(0, -.3, .56, .58, 190, 350), width=.1)
    pen.area((.5, .3), (.98, -.28), (1.02, -.1), (.72, .6))
    pen.area(*both((.3, -.34), (.56, -.2), (.78, .6), (.66, .8)))
    pen.line((-.7, .5), (.7, .5), fill=pen.dark, width=.12)
    pen.dot(0, -.44, .12)

def cup(pen):
    pen.area(*arc(0, .7, .98, .2), fill=pen.light)
    pen.rope(*arc(.66, .04, .28, .24, -90, 90), width=.1)
    pen.area(*arc(0, -.2, .74, .9, 0, 180))
    pen.area(*arc(0, -.2, .74, .2), fill=BROWN)

def mug(pen):
    pen.rope(*arc(.48, .1, .44, .44, -80, 80), width=.16)
    pen.area(*both((.54, -.84), (.54, .84)))
    pen.area(*arc(0, -.82, .54, .14), fill=pen.dark)
    for y in (0, .36):
        pen.line((-.5, y), (.5, y), fill=WHITE, width=.16)

def flask(pen):
    pen.area(*both((.4, -.3), (.46, -.16), (.46, .98)))
    pen.area(*both((.3, -.98), (.36, -.36)), fill=STEAM)
    pen.area(*both((.46, .44), (.46, .72)), fill=pen.light)
    pen.line((-.28, -.14), (-.28, .36), fill=WHITE, width=.1)

# ---- knots: what is tied; what it is tied with or to

def rope(pen):
    """A coil."""
    pen.rope((.5, .6), (.98, .84), width=.16)
    for y in (.56, .28, 0, -.28, -.56):
        pen.rope(*arc(0, y, .7, .3), width=.17)

def lace(pen):
    """Crossed, as on a shoe."""
    for side in (-1, 1):
        points = [(.62 * side * (-1)**k, -.56 + .36 * k) for k in range(5)]
        pen.line(*points, fill=INK, width=.2)
        pen.line(*points, fill=pen.fill, width=.12)
        pen.line(points[0], (.3 * side, -.98), fill=pen.fill, width=.12)
        for x, y in points:
            pen.dot(x, y, .12)
            pen.dot(x, y, .06, WHITE)

def yarn(pen):
    for side in (-1, 1):
        pen.line((.5 * side, -.98), (-.4 * side, .5), fill=BROWN, width=.09)
        pen.dot(.5 * side, -.96, .1, BROWN)
    pen.rope((.1, .86), (.6, .96), (.96, .8), width=.07)
    pen.area(*arc(-.08, .22, .72, .7))
    for k in range(3):
        pen.line(*arc(-.5 + .22 * k, .1, .4, .6, -60, 60), fill=pen.dark)
        pen.line(*arc(-.1, .5 - .2 * k, .56, .34, 200, 300), fill=pen.light)

def ribbon(pen):
    """A strip in waves, with a notch at each end."""
    for k in range(4):
        x, up = -.9 + .45 * k, .3 * (-1)**k
        pen.area((x, up - .2), (x + .45, -up - .2), (x + .45, -up + .24), (x, up + .24),
                 fill=(pen.fill, pen.dark)[k % 2])
    pen.area((-.9, .1), (-.9, .54), (-1.06, .44), (-1, .3), (-1.08, .1), fill=pen.light)
    pen.area((.9, .1), (.9, .54), (1.06, .44), (1, .3), (1.08, .1), fill=pen.light)

def hand(pen):
    for x, top in ((-.42, -.66), (-.14, -.92), (.14, -.86), (.42, -.6)):
        pen.rope((x, .2), (x, top), width=.2)
        pen.dot(x, top, .1, pen.fill)
    pen.rope((-.4, .5), (-.86, .1), width=.22)
    pen.area((-.54, .06), (.54, .06), (.5, .6), (.3, .96), (-.3, .96), (-.52, .6))
    pen.patch((-.46, -.02), (.46, -.02), (.46, .3), (-.46, .3))

def post(pen):
    pen.area(*arc(0, .8, .94, .18), fill=GREEN)
    pen.area((-.3, .84), (-.3, -.7), (0, -.98), (.3, -.7), (.3, .84))
    for x, y in ((-.12, -.3), (.1, 0), (-.06, .36)):
        pen.line((x, y), (x, y + .3), fill=pen.dark)
    pen.line((-.3, -.7), (.3, -.7))

def ring(pen):
    pen.rope(*arc(0, .3, .58, .58), width=.18)
    pen.area((-.34, -.62), (-.18, -.9), (.18, -.9), (.34, -.62), (0, -.24), fill=pen.light)
    pen.line((-.34, -.62), (.34, -.62))

def hook(pen):
    """On a plate, as in a wall."""
    pen.area(*both((.34, -.98), (.34, -.5)), fill=TAN)
    for x in (-.2, .2):
        pen.dot(x, -.74, .06)
    pen.rope((0, -.5), (0, .4), *arc(-.34, .44, .34, .44, 0, 200), width=.18)

# ---- kites: what it is made of; what it flies on

def paper(pen):
    """A sheet with a folded corner."""
    pen.area((-.68, -.94), (.28, -.94), (.68, -.54), (.68, .94), (-.68, .94))
    pen.area((.28, -.94), (.28, -.54), (.68, -.54), fill=WHITE)
    for k in range(4):
        pen.line((-.48, -.3 + .32 * k), (.46, -.3 + .32 * k), fill=pen.dark, width=.09)

def sticks(pen):
    for side in (-1, 1):
        pen.rope((-.8 * side, -.9), (.8 * side, .9), width=.17)
    for y in (-.08, .08):
        pen.line((-.2, y), (.2, y), fill=WHITE, width=.1)

def cloth(pen):
    """Checked, with a fringe."""
    for k in range(9):
        pen.line((-.76 + .19 * k, .5), (-.76 + .19 * k, .92), fill=pen.dark, width=.07)
    pen.area(*both((.86, -.82), (.86, .66)))
    for row in range(4):
        for column in range(row % 2, 4, 2):
            x, y = -.84 + .42 * column, -.8 + .36 * row
            pen.patch((x, y), (x + .42, y), (x + .42, y + .36), (x, y + .36), fill=WHITE)

def bag(pen):
    """With two handles."""
    for side in (-1, 1):
        pen.rope((.18 * side, -.3), (.22 * side, -.8), (.46 * side, -.8), (.5 * side, -.3), width=.09)
    pen.area(*both((.6, -.36), (.74, .92)))
    pen.area((-.36, .1), (.36, .1), (.36, .56), (-.36, .56), fill=WHITE)

def reel(pen):
    """A winder with two grips."""
    pen.line((.4, .3), (.7, .66), (.6, .98), fill=STEAM, width=.07, curved=True)
    for y in (-.56, .56):
        pen.rope((-.98, y), (.98, y), width=.16)
    pen.area(*both((.46, -.48), (.46, .48)))
    for k in range(5):
        pen.line((-.44, -.32 + .16 * k), (.44, -.42 + .16 * k), fill=pen.light)

def wind_sock(pen):
    pen.line((-.86, -.96), (-.86, 1), fill=BROWN, width=.12)
    edges = [(-.74 + .44 * k, -.76 + .05 * k, -.02 - .02 * k) for k in range(5)]
    for k, ((x, top, low), (x2, top2, low2)) in enumerate(zip(edges, edges[1:])):
        pen.area((x, top), (x2, top2 + .04), (x2, low2 - .04), (x, low), fill=(pen.fill, WHITE)[k % 2])

def spool(pen):
    pen.area(*both((.44, -.6), (.44, .6)))
    for k in range(6):
        pen.line((-.42, -.42 + .18 * k), (.42, -.5 + .18 * k), fill=pen.dark)
    for y in (-.74, .74):
        pen.area((-.7, y - .16), (.7, y - .16), (.7, y + .16), (-.7, y + .16), fill=TAN)

def fan(pen):
    pen.area(*both((.07, .4), (.07, .8), (.46, .96)), fill=BROWN)
    pen.area(*arc(0, -.26, .7, .7), fill=WHITE)
    for k in range(3):
        pen.area((0, -.26), *[polar(.58, 120 * k + turn, 0, -.26) for turn in (-70, -45, -15)])
    pen.dot(0, -.26, .12)

# ---- card tricks: what a magician has; what is printed on a card

def hat(pen):
    pen.area(*arc(0, .66, .98, .24))
    pen.area((-.52, -.8), (.52, -.8), (.58, .62), (-.58, .62))
    pen.area(*arc(0, -.8, .52, .12), fill=pen.dark)
    pen.patch((-.55, .24), (.55, .24), (.56, .54), (-.56, .54), fill=WHITE)

def wand(pen):
    pen.rope((-.8, .86), (.3, -.34), width=.18)
    pen.line((.12, -.14), (.32, -.36), fill=WHITE, width=.18)
    for x, y, r in ((.62, -.66, .34), (-.3, -.6, .17), (.76, .26, .17)):
        pen.patch(*[polar(r * (.36 if k % 2 else 1), 45 * k, x, y) for k in range(8)], fill=pen.dark)

def rabbit(pen):
    for side in (-1, 1):
        pen.area(*arc(.28 * side, -.52, .17, .46))
        pen.line((.28 * side, -.76), (.28 * side, -.3), fill=WHITE, width=.12)
    pen.area(*arc(0, .34, .62, .58))
    for side in (-1, 1):
        pen.dot(.24 * side, .2, .09)
        for y in (.4, .56):
            pen.line((.2 * side, .46), (.86 * side, y))
    pen.dot(0, .42, .09, WHITE)
    pen.area((-.1, .58), (.1, .58), (.1, .8), (-.1, .8), fill=WHITE)

def cape(pen):
    pen.area(*both((.2, -.72), (.5, -.5), (.94, .84), (.5, .7), (.3, .92), (0, .74)))
    pen.patch(*both((.05, -.6), (.3, .7), (0, .6)), fill=pen.dark)
    for side in (-1, 1):
        pen.area((0, -.5), (.2 * side, -.98), (.6 * side, -.86), (.3 * side, -.44), fill=pen.light)
    pen.dot(0, -.5, .1, ORANGE)

def heart(pen):
    pen.area(*both((0, -.5), (.26, -.82), (.6, -.84), (.86, -.56), (.84, -.14), (.5, .38), (0, .9)))
    pen.line(*arc(-.44, -.44, .22, .22, 170, 290), fill=WHITE, width=.1)

def spade(pen):
    pen.area((-.1, .3), (.1, .3), (.34, .96), (-.34, .96), fill=pen.dark)
    pen.area(*both((0, -.96), (.44, -.4), (.84, .1), (.78, .44), (.46, .56), (.1, .34)))

def club(pen):
    pen.area((-.1, .2), (.1, .2), (.34, .96), (-.34, .96), fill=pen.dark)
    for more, fill in ((pen.edge, INK), (0, pen.fill)):
        for x, y in ((0, -.54), (-.48, .2), (.48, .2)):
            pen.dot(x, y, .4 + more, fill)
        pen.dot(0, 0, .2, fill)

def crown(pen):
    pen.area((-.8, .7), (-.94, -.5), (-.44, .02), (0, -.76), (.44, .02), (.94, -.5), (.8, .7))
    for x, y in ((-.92, -.56), (0, -.82), (.92, -.56)):
        pen.dot(x, y, .12)
        pen.dot(x, y, .07, WHITE)
    pen.line((-.76, .46), (.76, .46), fill=pen.dark, width=.16)

# ---- whistling: what blows; what sounds

def mouth(pen):
    """Open."""
    pen.area(*both((0, -.5), (.3, -.6), (.94, -.2), (.66, .42), (.3, .68), (0, .7)))
    pen.area(*both((0, -.28), (.3, -.34), (.66, -.12), (.44, .32), (0, .44)), fill=INK)
    pen.patch(*both((.5, -.22), (.42, .02)), fill=WHITE)

def lips(pen):
    """Closed."""
    pen.area((-.98, 0), (-.3, -.48), (0, -.32), (.3, -.48), (.98, 0), (.4, .5), (-.4, .5), curved=True)
    pen.line((-.96, 0), (-.3, -.06), (0, .04), (.3, -.06), (.96, 0), width=.1, curved=True)
    pen.line((-.3, .26), (.3, .26), fill=pen.light, width=.1)

def tongue(pen):
    pen.line((-.96, -.62), (-.4, -.5), (.4, -.5), (.96, -.62), width=.16, curved=True)
    pen.area((-.5, -.5), (.5, -.5), (.54, .3), *arc(0, .36, .54, .58, 0, 180), (-.54, .3))
    pen.line((0, -.4), (0, .5), fill=pen.dark, width=.1)

def tooth(pen):
    pen.area((-.3, -.8), (0, -.66), (.3, -.8), (.7, -.6), (.66, -.06), (.5, .4), (.4, .94), (.2, .8),
             (.08, .2), (-.08, .2), (-.2, .8), (-.4, .94), (-.5, .4), (-.66, -.06), (-.7, -.6), curved=True)
    pen.line((-.44, -.5), (-.44, -.1), fill=WHITE, width=.12)

def note(pen):
    """Two quavers."""
    for x, y in ((-.56, .66), (.54, .5)):
        pen.area(*arc(x, y, .34, .25))
        pen.line((x + .28, y), (x + .28, y - 1.36), width=.12)
    pen.area((-.34, -.74), (.88, -.92), (.88, -.6), (-.34, -.42))

def reed(pen):
    """Cattails."""
    for x, top, lean in ((-.1, -.92, 0), (.4, -.56, .1), (-.56, -.4, -.08)):
        pen.line((x * .5, 1), (x + lean, top), fill=TAN, width=.08)
        pen.rope((x + lean * .6, top + .6), (x + lean, top + .16), width=.24)
    pen.area((0, 1), (.5, .3), (.98, .1), (.6, .5), (.2, 1), fill=TAN)

def flute(pen):
    pen.area((-.98, .62), (-.86, .86), (.98, -.62), (.86, -.86))
    for k in range(5):
        pen.dot(-.42 + .22 * k, .34 - .18 * k, .07, INK)
    pen.line((.6, -.66), (.74, -.42), fill=WHITE, width=.12)
    pen.line((-.72, .4), (-.6, .64), fill=WHITE, width=.12)

def horn(pen):
    pen.rope(*arc(-.2, .1, .36, .36, 90, 360), width=.13)
    pen.rope((-.98, .46), (.3, .46), width=.13)
    pen.area((.2, .36), (.98, -.1), (.98, .98), (.2, .56))
    pen.area(*arc(.96, .44, .1, .54), fill=pen.dark)
    pen.line((-.98, .34), (-.98, .58), width=.12)

# ---- pigeons: what is of one; what one is kept with

def feather(pen):
    pen.area((-.6, .74), (-.66, .1), (-.2, -.5), (.9, -.98), (.72, -.2), (.5, -.1), (.5, .06), (.2, .1),
             (.2, .34), (-.1, .5))
    for x, y in ((-.4, .4), (-.12, .1), (.16, -.2), (.44, -.5)):
        pen.line((x, y), (x + .3, y - .02), fill=pen.dark)
        pen.line((x, y), (x - .02, y - .3), fill=pen.dark)
    pen.line((-.98, 1), (-.4, .4), (.84, -.92), fill=INK, width=.09)

def egg(pen):
    pen.area(*both((0, -.94), (.38, -.66), (.62, 0), (.6, .5), (.3, .86), (0, .94)), curved=True)
    for x, y in ((-.24, -.3), (.2, -.08), (-.3, .3), (.26, .46), (-.02, .64), (.04, -.56)):
        pen.dot(x, y, .09, pen.dark)

def wing(pen):
    """Three rows of feathers below an arm."""
    for row, fill in enumerate((pen.fill, pen.light, pen.dark)):
        for k in range(6 - row):
            x, low = -.9 + .3 * k, .9 - .16 * k - .44 * row
            pen.area((x, -.5), (x + .3, -.5), (x + .3, low - .1), *arc(x + .15, low - .1, .15, .2, 0, 180),
                     (x, low - .1), fill=fill)
    pen.area((-.98, -.4), (-.86, -.7), (.3, -.9), (.96, -.66), (.96, -.4), curved=True)

def nest(pen):
    for x in (-.4, 0, .4):
        pen.area(*arc(x, -.1, .24, .34), fill=WHITE)
    pen.area((-.94, 0), (.94, 0), (.7, .56), (.3, .8), (-.3, .8), (-.7, .56))
    for k in range(5):
        pen.line((-.8 + .3 * k, .1), (-.4 + .26 * k, .6), fill=pen.dark)
        pen.line((-.4 + .3 * k, .1), (-.7 + .3 * k, .5), fill=BROWN)

def cage(pen):
    pen.line(*arc(0, -.9, .12, .12))
    pen.area(*arc(0, -.16, .72, .64, 180, 360), (.72, .74), (-.72, .74), fill=WHITE)
    for x in (-.48, -.24, 0, .24, .48):
        pen.line((x, -.16 - .64 * (1 - (x / .72)**2)**.5), (x, .74))
    pen.line((-.72, -.1), (.72, -.1), fill=pen.fill, width=.14)
    pen.area(*both((.86, .66), (.86, .94)))

def bread(pen):
    """A slice."""
    crust = (0, -.7), (.5, -.76), (.9, -.56), (.9, -.16), (.7, .02), (.7, .8)
    pen.area(*both(*crust))
    pen.patch(*[(.72 * x, .72 * y + .02) for x, y in both(*crust)], fill=CREAM)
    for x, y in ((-.3, -.3), (.26, -.2), (0, .16), (-.24, .44), (.3, .46)):
        pen.dot(x, y, .06, pen.fill)

def corn(pen):
    pen.area(*both((0, -.98), (.3, -.74), (.4, -.1), (.3, .7)), curved=True)
    for row in range(6):
        for x in (-.2, 0, .2):
            pen.dot(x, -.7 + .2 * row, .07, pen.dark)
    for side in (-1, 1):
        pen.area((0, .98), (.34 * side, .5), (.66 * side, -.3), (.62 * side, .5), fill=GREEN)

def bench(pen):
    for x in (-.66, .66):
        pen.line((x, -.5), (x, .9), width=.1)
        pen.line((x - .14, .24), (x + .1, .24), (x + .14, .9), width=.1)
    for y in (-.56, -.26, .14):
        pen.area((-.96, y), (.96, y), (.96, y + .22), (-.96, y + .22))

# ---- pictures

PARTS = {draw.__name__.replace("_", " "): draw for draw in (
    leaf, lemon, mint, sugar, kettle, cup, mug, flask, rope, lace, yarn, ribbon, hand, post, ring, hook,
    paper, sticks, cloth, bag, reel, wind_sock, spool, fan, hat, wand, rabbit, cape, heart, spade, club,
    crown, mouth, lips, tongue, tooth, note, reed, flute, horn, feather, egg, wing, nest, cage, bread, corn,
    bench)}
ALL = THINGS | PARTS

def shown(kind, color, rng):
    """One thing, large, not quite in the middle, a little turned."""
    shade, span = rng.randint(226, 250), SIDE * FINE
    image = Image.new("RGB", (span, span), tuple(shade + rng.randint(-14, 5) for _ in range(3)))
    fill = tuple(min(255, c + rng.randint(-12, 12)) for c in COLORS[color])
    size = rng.uniform(.27, .35)
    free = .49 - 1.36 * size  # how far a turned thing may stand from the middle: the knot reaches furthest
    x, y = (span * (.5 + rng.uniform(-free, free)) for _ in range(2))
    ALL[kind](Pen(image, x, y, size * span, fill, rng))
    return image.reduce(FINE)
