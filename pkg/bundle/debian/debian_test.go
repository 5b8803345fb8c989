package debian

import (
	"os/exec"
	"strings"
	"testing"
)

func TestMissingLibraryIsNamed(t *testing.T) {
	self, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no nft here to take apart")
	}
	_, err = closure(map[string]string{"nft": self}, []string{"nft"})
	if err == nil || !strings.Contains(err.Error(), "libnftables.so.1 is in none of the packages") {
		t.Errorf("closure: %v", err)
	}
}
