package ociruntime

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// crunScript gives crun a specification of a version that every crun knows.
//
// crun looks for "1.0" in it and refuses others with "unknown version specified",
// up to 1.8.1 of Debian 12 at least; of what later versions of the specification
// added it takes what it knows all the same. containerd can be given another
// version for containers (base_runtime_spec), but not for a pod's sandbox.
const crunScript = `#!/bin/sh
# Made by Knarr, and made again at its next start.
bundle= last=
for word; do
	case $last in --bundle | -b) bundle=$word ;; esac
	case $word in --bundle=*) bundle=${word#--bundle=} ;; esac
	last=$word
done
if [ -n "$bundle" ]; then
	sed -i '1s/^{"ociVersion":"1\.[1-9][^"]*"/{"ociVersion":"1.0.2"/' "$bundle/config.json" || exit 1
fi
exec %s "$@"
`

// Program returns what is to be run in runc's place: Path itself, or a script in
// dir that runs it. The script is written if it is not there as it should be; pods
// may need it as long as they live.
func (r Runtime) Program(dir string) (string, error) {
	if r.Handler != "crun" {
		return r.Path, nil
	}
	text := fmt.Appendf(nil, crunScript, "'"+strings.ReplaceAll(r.Path, "'", `'\''`)+"'")
	path := filepath.Join(dir, "crun")
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, text) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the folder of the script that runs crun: %w", err)
	}
	next := path + ".new"
	if err := os.WriteFile(next, text, 0o755); err != nil {
		return "", fmt.Errorf("write the script that runs crun: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return "", fmt.Errorf("write the script that runs crun: %w", err)
	}
	return path, nil
}
