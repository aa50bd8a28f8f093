"""Class names of the larger public data sets, and the colour map for sets without colours."""

from collections.abc import Iterable


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


# PASCAL VOC, in the order of its label ids.
VOC_NAMES = _names("""
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog,
horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
""")

# ADE20K SceneParsing, in the order of its label ids 1..150. Source: data/ade20k_constants.py of
# github.com/google-research/deeplab2 at 64bc1c1a6505b6cd1779b65f9127180840b8a4fa.
ADE20K_NAMES = _names("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
railing, cushion, base, box, column, signboard, chest-of-drawers, counter, sand, sink,
skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool-table, pillow,
screen-door, stairway, river, bridge, bookcase, blind, coffee-table, toilet, flower, book, hill,
bench, countertop, stove, palm, kitchen-island, computer, swivel-chair, boat, bar,
arcade-machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
television, airplane, dirt-track, apparel, pole, land, bannister, escalator, ottoman, bottle,
buffet, poster, stage, van, ship, fountain, conveyer-belt, canopy, washer, plaything,
swimming-pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
step, tank, trade-name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
sculpture, hood, sconce, vase, traffic-light, tray, ashcan, fan, pier, crt-screen, plate,
monitor, bulletin-board, shower, radiator, glass, clock, flag
""")

# COCO's names of VOC's classes, where they differ.
COCO_OF_VOC = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def voc_colors(ids: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
    """The colour map of PASCAL VOC: id 0 is black, no two of 0..255 are alike.

    The bits of the id are dealt out to red, green and blue, highest bit first.
    """
    colors = []
    for i in ids:
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (i >> (3 * bit + channel) & 1) << (7 - bit)
        colors.append((color[0], color[1], color[2]))
    return tuple(colors)
