package config

import (
	"strconv"
	"strings"
)

// nodeMask is Network.NodeMask, from the controller-manager's flags.
func (c ControlPlane) nodeMask() int {
	size := 0
	for _, a := range c.ControllerManagerArgs {
		value, ok := strings.CutPrefix(strings.TrimLeft(a, "-"), "node-cidr-mask-size=")
		if n, err := strconv.Atoi(value); ok && err == nil {
			size = n
		}
	}
	return size
}
