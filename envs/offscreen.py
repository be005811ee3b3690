"""Pictures of MuJoCo worlds without a screen: on Linux through EGL, on a graphics card or by the processor alone."""

import sys
from typing import final

import mujoco
import numpy as np

UNDRAWABLE = (ImportError, AttributeError, RuntimeError, OSError)  # what mujoco.egl raises without a usable EGL
MAX_GEOMS = 2000


@final
class OffscreenCamera:
    """Draws one model as squares of `size` px, seen by `view`.

    MuJoCo's own renderer picks its back end from the environment variable MUJOCO_GL when MuJoCo is imported, and fails without
    a screen where nobody set it; this one asks for EGL itself.

    Args:
        model: what is drawn; its off-screen buffer grows to `size` where it is smaller.
        size: edge of the images in px.
        view: the camera.
        shadows: whether lights cast shadows, which takes most of the time where the processor draws.

    Raises:
        ValueError: this machine cannot draw without a screen.
    """

    def __init__(self, model: mujoco.MjModel, *, size: int, view: mujoco.MjvCamera, shadows: bool = False) -> None:
        self._model, self._size, self._view = model, size, view
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        try:
            if sys.platform == "linux":
                from mujoco.egl import GLContext
            else:
                from mujoco import GLContext
            self._context = GLContext(size, size)
            self._context.make_current()
        except UNDRAWABLE as error:
            raise ValueError(
                f"Nothing can be drawn on this machine ({type(error).__name__}: {error}). Install EGL (Debian and Ubuntu: "
                "apt install libegl1 libgl1), leave PYOPENGL_PLATFORM unset, or do without films and pictures."
            ) from error
        self._scene = mujoco.MjvScene(model, MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._drawer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawer)

    def shoot(self, data: mujoco.MjData) -> np.ndarray:
        """The image "h w c", uint8 RGB, of the world in the state `data`."""
        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, self._perturbation, self._view, everything, self._scene)
        viewport = mujoco.MjrRect(0, 0, self._size, self._size)
        mujoco.mjr_render(viewport, self._scene, self._drawer)
        image = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._drawer)
        return image[::-1].copy()  # OpenGL begins at the bottom

    def close(self) -> None:
        """Frees what the drawing holds."""
        self._context.make_current()
        self._drawer.free()
        self._context.free()
