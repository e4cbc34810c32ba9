"""Whether a layer is frozen, and a hash of the weights that its output depends on."""

import hashlib
from collections.abc import Iterable

from filterscope.models.classifier import Classifier
from filterscope.models.layers import find_layer
from filterscope.storage.disk_cache import tensor_bytes


def is_frozen(classifier: Classifier, layer: str, *, alone: bool = False) -> bool:
    """Return whether no parameter of a layer and of the layers before it requires a gradient.

    Args:
        classifier: the network.
        layer: a layer's name.
        alone: whether to look at the layer's own parameters only.
    """
    path = find_layer(classifier.layers, layer).path
    if alone:
        return not any(parameter.requires_grad for parameter in classifier.get_submodule(path).parameters())
    for name, module in classifier.named_modules():
        if name == path:
            return is_frozen(classifier, layer, alone=True)
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            return False
    return True


def fingerprints(classifier: Classifier, layers: Iterable[str]) -> dict[str, str]:
    """Return for each layer a hash of all parameters and buffers of the layer itself and of the layers before it.

    "Before" means the order of the modules; in a network with branches that may include more than a layer depends on.
    """
    paths = {layer: find_layer(classifier.layers, layer).path for layer in layers}
    running, found = hashlib.sha256(), dict.fromkeys(paths, "")
    for name, module in classifier.named_modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            running.update(tensor_bytes(tensor))
        for layer, path in paths.items():
            if name == path or name.startswith(f"{path}."):  # the last child gives the final value
                found[layer] = running.copy().hexdigest()
    return found


def fingerprint(classifier: Classifier) -> str:
    """Return a hash of all parameters and buffers of a network."""
    running = hashlib.sha256()
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        running.update(tensor_bytes(tensor))
    return running.hexdigest()
