"""Things to draw: six of the proxy policy, six others, six that look alike. A thing is a function of a Pen.

    from proxy_images.draw import THINGS, picture
    image = picture(THINGS["kite"], "red", 1, "left", random.Random(0))  # 2 ms

Another Pillow may move a pixel: it rasterises the shapes.
"""
import math

from PIL import Image, ImageDraw

SIDE, FINE = 112, 4  # drawn FINE times larger, then averaged
COLORS = {"red": (214, 40, 40), "green": (52, 158, 70), "blue": (44, 96, 206), "yellow": (242, 206, 46),
          "purple": (124, 54, 160), "pink": (246, 150, 192)}  # no two alike
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
INK, WHITE, STEAM, GLASS = (40, 38, 42), (252, 252, 250), (150, 150, 156), (214, 226, 232)
BROWN, TAN, ORANGE, GREEN = (130, 88, 56), (222, 196, 160), (236, 140, 40), (70, 130, 70)

# ---- points: x runs right and y down, a thing reaches from -1 to 1

def polar(r, degrees, x=0, y=0):
    return x + r * math.cos(math.radians(degrees)), y + r * math.sin(math.radians(degrees))

def arc(x, y, rx, ry, start=0, end=360):
    """On an ellipse, clockwise from the right."""
    circle = [polar(1, start + (end - start) * k / 32) for k in range(33)]
    return [(x + rx * across, y + ry * down) for across, down in circle]

def both(*right):
    """The outline of a thing whose left half mirrors its right."""
    return [*right, *[(-x, y) for x, y in right[::-1]]]

def smooth(points, closed):
    """Catmull-Rom: a curve through the points."""
    n, curve = len(points), []
    for i in range(n if closed else n - 1):
        near = [points[j % n if closed else min(max(j, 0), n - 1)] for j in range(i - 1, i + 3)]
        for t in (k / 8 for k in range(8)):
            weights = -t + 2*t**2 - t**3, 2 - 5*t**2 + 3*t**3, t + 4*t**2 - 3*t**3, t**3 - t**2
            curve.append(tuple(sum(w * p[axis] for w, p in zip(weights, near)) / 2 for axis in (0, 1)))
    return curve if closed else curve + [points[-1]]

class Pen:
    """Draws one thing: at a place, in a size and a colour, a little turned, perhaps mirrored."""
    def __init__(self, image, x, y, size, fill, rng):
        self.draw = ImageDraw.Draw(image)
        self.x, self.y, self.size = x, y, size
        self.fill = fill
        self.dark = tuple(int(.68 * c) for c in fill)
        self.light = tuple(int(c + .7 * (255 - c)) for c in fill)  # of red: not pink
        self.mirror = rng.choice((-1, 1))
        self.edge = rng.uniform(.05, .08)  # the outline's width
        self.right, self.down = polar(size, rng.uniform(-12, 12))  # the axis to the right, as pixels

    def place(self, points):
        points = [(x * self.mirror, y) for x, y in points]
        return [(self.x + x * self.right - y * self.down, self.y + x * self.down + y * self.right)
                for x, y in points]

    def line(self, *points, width=None, fill=INK, curved=False):
        points = smooth(points, False) if curved else points
        pixels = max(2, round((width or self.edge) * self.size))
        self.draw.line(self.place(points), fill, pixels, joint="curve")

    def patch(self, *points, fill=None):
        self.draw.polygon(self.place(points), fill or self.fill)

    def area(self, *points, fill=None, curved=False):
        """A patch with an outline."""
        points = smooth(points, True) if curved else points
        self.patch(*points, fill=fill)
        self.line(*points, *points[:2])

    def dot(self, x, y, r, fill=INK):
        self.patch(*arc(x, y, r, r), fill=fill)

    def rope(self, *points, width):
        """A line with an outline."""
        self.line(*points, width=width + 2 * self.edge)
        self.line(*points, width=width, fill=self.fill)

# ---- of the proxy policy

def teapot(pen):
    pen.rope(*arc(-.6, .12, .3, .34, 70, 290), width=.1)
    pen.area((.4, .45), (.66, .2), (.74, -.18), (.98, -.3), (.92, .02), (.74, .45), (.45, .65), curved=True)
    pen.area(*arc(0, .74, .36, .1), fill=pen.dark)
    pen.area(*arc(0, .2, .64, .56))
    pen.line(*arc(0, .2, .62, .26, 12, 168), fill=pen.light, width=.09)
    pen.area(*arc(0, -.26, .38, .22, 180, 360), fill=pen.light)
    pen.area(*arc(0, -.55, .1, .1))
    for x in (.84, 1):
        pen.line((x, -.46), (x + .08, -.62), (x - .06, -.76), (x + .04, -.92), fill=STEAM, curved=True)

def knot(pen):
    """A trefoil cut open is an overhand knot; the strands that pass below come first."""
    def strand(start, end):
        turns = [math.pi * (start + (end - start) * k / 16) for k in range(17)]
        return [(.28 * (math.sin(a) + 2 * math.sin(2 * a)), .28 * (2 * math.cos(2 * a) - math.cos(a)))
                for a in turns]
    left = [(-.98, .95), *strand(1.3, 1.7)]
    right = [*strand(2.63, 2.7), (.98, .95)]
    for part in strand(1.64, 2.03), strand(2.3, 2.7), strand(1.97, 2.36), left, right:
        pen.rope(*part, width=.17)
    for side in (-1, 1):
        pen.line((.9 * side, 1.06), (1.06 * side, .84))

def kite(pen):
    pen.line((0, .2), (.16, .42), (-.16, .66), (.1, .98), curved=True)
    for x, y in ((.12, .44), (-.1, .76)):  # bows
        for side in (-.2, .2):
            pen.area((x, y), (x + side, y - .12), (x + side, y + .12), fill=pen.dark)
    pen.area((0, -1), (.62, -.42), (0, .26), (-.62, -.42))
    pen.area((0, -1), (.62, -.42), (0, -.42), fill=pen.dark)
    pen.area((0, .26), (-.62, -.42), (0, -.42), fill=pen.dark)

def playing_card(pen):
    pen.area(*both((.64, -.96), (.64, .96)), fill=WHITE)
    pen.patch(*both((.54, -.86), (.54, .86)))
    for x, y, r in ((0, 0, .36), (-.38, -.66, .12), (.38, .66, .12)):
        pen.patch((x, y - 1.3 * r), (x + r, y), (x, y + 1.3 * r), (x - r, y), fill=WHITE)

def whistle(pen):
    pen.line(*arc(1, -.1, .14, .14))
    pen.area((-1, -.46), (.3, -.46), *arc(.3, .12, .58, .58, -90, 196), (-1, -.04))
    pen.area((-.3, -.5), (.02, -.5), (-.14, -.2), fill=INK)
    pen.area(*arc(.3, .12, .32, .32), fill=pen.light)
    pen.area(*arc(.36, .2, .16, .16), fill=BROWN)  # the pea
    pen.line((-.82, -.46), (-.82, -.04), fill=pen.dark)

def pigeon(pen):
    for x in (0, .24):
        pen.line((x, .3), (x, .8), (x + .18, .86), fill=ORANGE)
        pen.line((x, .8), (x - .14, .86), fill=ORANGE)
    pen.area((.7, -.72), (.96, -.58), (.7, -.52), fill=INK)
    head, breast = [(.26, -.76), (.48, -.9), (.74, -.7), (.66, -.42)], [(.7, 0), (.36, .4), (-.2, .36)]
    pen.area(*head, *breast, (-.92, .5), (-1, .34), (-.45, -.1), (.16, -.4), curved=True)
    pen.line((.22, -.36), (.48, -.28), (.68, -.34), fill=pen.dark, width=.14, curved=True)
    pen.area((.36, -.06), (.16, .2), (-.6, .36), (-.8, .3), (.04, -.2), fill=pen.light, curved=True)
    for x in (-.2, -.42):
        pen.line((x, -.06), (x + .12, .24), fill=pen.dark, width=.1)
    pen.dot(.52, -.68, .09, WHITE)
    pen.dot(.53, -.68, .05)

# ---- others

def tree(pen):
    pen.area(*both((.14, .2), (.2, .95)), fill=BROWN)
    for more, fill in ((pen.edge, INK), (0, pen.fill)):  # one outline around all
        for x, y in ((-.36, -.1), (.36, -.1), (-.3, -.52), (.3, -.52), (0, -.3)):
            pen.dot(x, y, .36 + more, fill)

def house(pen):
    pen.area((.34, -.85), (.56, -.85), (.56, -.2), (.34, -.2), fill=BROWN)
    pen.area(*both((.66, -.1), (.66, .85)))
    pen.area((-.92, -.08), (0, -.9), (.92, -.08), fill=pen.dark)
    pen.area((-.48, .3), (-.1, .3), (-.1, .85), (-.48, .85), fill=BROWN)
    pen.area((.12, .2), (.5, .2), (.5, .56), (.12, .56), fill=GLASS)
    pen.line((.31, .2), (.31, .56))

def waves(pen, y):
    pen.line(*[(-1 + k / 5, y + .06 * (-1)**k) for k in range(11)], fill=STEAM, width=.08, curved=True)

def boat(pen):
    pen.line((0, .35), (0, -.98), fill=BROWN, width=.1)
    pen.area((.08, -.9), (.08, .18), (.74, .18), fill=pen.light)
    pen.area((-.08, -.7), (-.08, .18), (-.56, .18), fill=WHITE)
    pen.area(*both((.94, .32), (.6, .78)))
    pen.line((-.8, .5), (.8, .5), fill=pen.light)
    waves(pen, .86)

def star(pen):
    points = [polar(.42 if k % 2 else 1, 36 * k - 90) for k in range(10)]
    pen.area(*points)
    for k in range(0, 10, 2):
        pen.patch((0, 0), points[k], points[k + 1], fill=pen.dark)

def car(pen):
    roof = [(-.62, -.04), (-.36, -.46), (.3, -.46), (.6, -.04)]
    pen.area((-.98, .36), (-.98, .04), *roof, (.98, .08), (.98, .36))
    pen.area((-.46, -.06), (-.28, -.36), (-.06, -.36), (-.06, -.06), fill=GLASS)
    pen.area((.04, -.06), (.04, -.36), (.26, -.36), (.46, -.06), fill=GLASS)
    for x in (-.54, .54):
        pen.dot(x, .38, .25)
        pen.dot(x, .38, .11, GLASS)
    pen.dot(.9, .16, .07, WHITE)

def fish(pen):
    pen.area((-.5, 0), (-.98, -.42), (-.84, 0), (-.98, .42), fill=pen.dark)
    pen.area((-.2, -.34), (.1, -.72), (.4, -.34), fill=pen.dark)
    pen.area((-.62, 0), (-.2, -.38), (.3, -.42), (.8, -.1), (.84, .08), (.3, .42), (-.2, .38), curved=True)
    pen.line(*arc(.28, 0, .14, .34, -70, 70))
    for x in (-.3, -.02):
        pen.line(*arc(x, 0, .1, .26, -80, 80), fill=pen.light, width=.1)
    pen.dot(.6, -.12, .11, WHITE)
    pen.dot(.62, -.12, .06)

# ---- that look like a proxy thing, in the order of those

def vase(pen):
    for x, y in ((-.4, -.68), (0, -.86), (.42, -.64)):
        pen.line((0, .1), (x, y), fill=GREEN)
        for k in range(5):
            pen.dot(*polar(.13, 72 * k, x, y), .11, WHITE)
        pen.dot(x, y, .09, ORANGE)
    pen.area(*both((.24, -.2), (.2, 0), (.5, .34), (.46, .66), (.26, .92)))
    pen.line((-.46, .44), (.46, .44), fill=pen.light, width=.12)

def snail(pen):
    for x in (.7, .92):
        pen.line((.76, .2), (x, -.28))
        pen.dot(x, -.3, .07)
    neck = [(.4, .5), (.6, .1), (.86, .02), (.98, .24), (.86, .68)]
    pen.area((-.98, .72), (-.4, .4), *neck, (.4, .8), fill=TAN, curved=True)
    pen.area(*arc(-.12, 0, .62, .62))
    pen.line(*[polar(.5 - .011 * k, 18 * k, -.12) for k in range(41)])

def umbrella(pen):
    pen.line((0, -1), (0, .7), fill=BROWN, width=.1)
    pen.line(*arc(.16, .7, .16, .2, 0, 180), fill=BROWN, width=.1)
    rim = [point for x in (.66, 0, -.66) for point in arc(x, .02, .33, .16, 0, -180)]
    pen.area(*arc(0, .02, .99, .84, 180, 360), *rim)
    for x in (-1, 1):
        pen.line((0, -.82), (.24 * x, -.5), (.33 * x, .02), curved=True)

def envelope(pen):
    pen.area(*both((.96, -.62), (.96, .62)))
    for side in (-1, 1):
        pen.line((.96 * side, .62), (.3 * side, 0))
    pen.area((-.96, -.62), (0, .16), (.96, -.62), fill=pen.light)
    pen.dot(0, .1, .14, WHITE)

def bell(pen):
    pen.line(*arc(0, -.82, .14, .14))
    pen.area(*arc(0, .7, .17, .17), fill=BROWN)
    pen.area(*both(*smooth([(.16, -.68), (.42, -.4), (.5, .1), (.62, .4), (.84, .62)], False)))
    pen.line((-.6, .4), (.6, .4), fill=pen.light, width=.1)

def duck(pen):
    pen.area((.7, -.5), (1.04, -.44), (1.04, -.3), (.68, -.24), fill=ORANGE)
    head, breast = [(.18, -.66), (.46, -.86), (.76, -.6), (.66, -.26)], [(.5, -.06), (.72, .26), (.3, .66)]
    tail = [(-.4, .66), (-.84, .3), (-1, -.24), (-.6, -.02)]
    pen.area(*head, *breast, *tail, (-.1, .02), (.2, -.2), curved=True)
    pen.area((.3, .16), (.1, .44), (-.4, .4), (-.62, .14), fill=pen.light, curved=True)
    pen.dot(.52, -.56, .08)
    waves(pen, .74)

# ---- pictures

THINGS = {draw.__name__.replace("_", " "): draw for draw in (
    teapot, knot, kite, playing_card, whistle, pigeon, tree, house, boat, star, car, fish,
    vase, snail, umbrella, envelope, bell, duck)}

def picture(draw, color, count, position, rng):
    """One to three of a thing in one colour; one alone may stand at the left, right, top or bottom."""
    shade, span = rng.randint(226, 250), SIDE * FINE
    image = Image.new("RGB", (span, span), tuple(shade + rng.randint(-14, 5) for _ in range(3)))
    fill = tuple(min(255, c + rng.randint(-12, 12)) for c in COLORS[color])
    size = rng.uniform(.165, .2) if position or count > 1 else rng.uniform(.24, .36)
    centres = rng.sample([(.27, .27), (.73, .27), (.27, .73), (.73, .73)], count)
    if count == 1:
        dx, dy = PLACES.get(position, (0, 0))
        centres = [(.5 + .23 * dx, .5 + .23 * dy)]
    for centre in centres:
        x, y = (span * (c + rng.uniform(-.025, .025)) for c in centre)
        draw(Pen(image, x, y, size * span, fill, rng))
    return image.reduce(FINE)
