"""The observation `object` of robomimic's tasks: robosuite 1.5 gives its elements in another order than 1.2 to 1.4 did."""

import numpy as np

# Poses (7) of each object and relative to the gripper (7) changed places; in Transport two flags moved to the front.
SWAPPED = [*range(7, 14), *range(7)]
ORDERS: dict[str, list[int]] = {
    "Lift": list(range(10)),
    "PickPlaceCan": SWAPPED,
    "NutAssemblySquare": SWAPPED,
    "TwoArmTransport": [*range(27), 39, 40, *range(27, 39)],
    "ToolHang": [14 * part + place for part in range(3) for place in SWAPPED] + [42, 43],
}
NEGATED = {"Lift": slice(7, 10)}  # from the gripper to the cube was from the cube to the gripper


def in_present_order(values: np.ndarray, *, world: str, version: str) -> np.ndarray:
    """The values "n k" of `object` in the order of robosuite 1.5, whichever version of robosuite made them.

    `world` is the name of the environment in robosuite; those that are not tasks of robomimic are left as they are.
    """
    parts = version.split(".")
    is_old = len(parts) > 1 and all(part.isdigit() for part in parts[:2]) and (int(parts[0]), int(parts[1])) < (1, 5)
    order = ORDERS.get(world)
    if not is_old or order is None or values.ndim != 2 or values.shape[1] != len(order):
        return values
    moved = values[:, order]
    if world in NEGATED:
        moved[:, NEGATED[world]] *= -1
    return moved
