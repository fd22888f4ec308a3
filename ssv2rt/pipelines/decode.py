"""Clips by PyAV: decode once, and let libswscale cut, scale and convert only the frames that are asked for.

Nothing is converted that is not kept, all views of a video are cut from one pass over it, and where a key frame lets the
decoder begin anew, nothing is decoded that no frame asked for depends on. Letters: V moments, S squares, T frames.
"""

from __future__ import annotations

import av
import av.error
import numpy as np

from ssv2rt.dataset.video import CLIP_ERRORS, BadVideo, VideoSource, open_video, reason_of, video_stream
from ssv2rt.pipelines.cutter import Cutter
from ssv2rt.pipelines.packets import frames_needed, frames_to
from ssv2rt.pipelines.request import ClipRequest


def decode_clips(source: VideoSource, request: ClipRequest, *, size: int) -> np.ndarray:
    """The frames and windows of a request, before flip and colour.

    Args:
        source: the video.
        request: which frames and windows.
        size: height and width of the result in pixels.

    Returns:
        uint8 RGB (V * S, T, size, size, 3).

    Raises:
        BadVideo: it cannot be decoded, or ends before the frames asked for.
    """
    try:
        with open_video(source) as container:
            try:
                return _decode(container, request, size, skip=True)
            except BadVideo:
                # It may call a frame a key frame that is none. From its beginning it decodes, if it does at all.
                with open_video(source) as again:
                    return _decode(again, request, size, skip=False)
    except BadVideo:
        raise
    except CLIP_ERRORS as error:
        raise BadVideo(reason_of(error)) from None


def _decode(container: av.container.InputContainer, request: ClipRequest, size: int, *, skip: bool) -> np.ndarray:
    moments, length = request.frames.shape
    clips = np.empty((moments, len(request.windows), length, size, size, 3), np.uint8)
    cutter = Cutter(request.windows, request.frame_size, size)
    order = np.argsort(request.frames, axis=None, kind="stable")
    wanted = request.frames.ravel()[order]
    moment, place = np.divmod(order, length)  # where in `clips` each wanted frame goes
    done, last = 0, -1  # wanted frames that are in place; number of the last frame seen
    stream = video_stream(container)
    try:
        for number, frame in frames_needed(container, stream, wanted) if skip else frames_to(container, stream):
            last = max(last, number)
            if number < wanted[done]:
                continue
            if frame.is_corrupt:
                raise BadVideo("corrupt")
            first = done
            cutter.cut(frame, clips[moment[first], :, place[first]])
            done += 1
            while done < len(wanted) and wanted[done] <= number:
                clips[moment[done], :, place[done]] = clips[moment[first], :, place[first]]
                done += 1
            if done == len(wanted):
                break
    except av.error.FFmpegError as error:
        raise BadVideo(reason_of(error)) from None
    # Some containers count a packet or two that show no picture; anything more is a file that lost its end.
    if done < len(wanted):
        if not done or wanted[-1] > last + 2 + last // 50:
            raise BadVideo("truncated" if last >= 0 else "unreadable")
        for at in range(done, len(wanted)):
            clips[moment[at], :, place[at]] = clips[moment[done - 1], :, place[done - 1]]
    return clips.reshape(-1, length, size, size, 3)
