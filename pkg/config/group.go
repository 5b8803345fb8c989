package config

import (
	"fmt"
	"os/user"
	"strconv"
)

// GID is the number of the group that owns the kubeconfig, -1 for root's own.
func (k Kubeconfig) GID() (int, error) {
	if k.Group == "" {
		return -1, nil
	}
	if id, err := strconv.Atoi(k.Group); err == nil {
		return id, nil
	}
	g, err := user.LookupGroup(k.Group)
	if err != nil {
		return 0, fmt.Errorf("--write-kubeconfig-group: %w; name a group of this machine, or its number", err)
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Errorf("--write-kubeconfig-group: group %s has the number %q: %w", k.Group, g.Gid, err)
	}
	return id, nil
}
