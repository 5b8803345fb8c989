package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// Version is what this build is made of. Empty fields are not shown.
type Version struct {
	// Knarr is the version of Knarr itself, such as v0.1.0.
	Knarr string `json:"knarr"`
	// Commit is the source's, and Date its time in RFC 3339.
	Commit string `json:"commit,omitempty"`
	Date   string `json:"date,omitempty"`
	// Kubernetes is the version that the API server tells.
	Kubernetes string `json:"kubernetes"`
	// Parts are the versions of what else is inside, in the order to show them.
	Parts []Part `json:"parts,omitempty"`
}

// Part is one thing inside of Knarr with a version of its own.
type Part struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// fullVersion adds what the compiler knows.
type fullVersion struct {
	Version  `json:",inline"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersion(v Version) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "Show the versions of Knarr and of what it is made of",
		Example: "  knarr version\n" +
			"  knarr version -o json",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	output := outputFlag(cmd, []string{"text", "json", "yaml"}, "text", "form of the output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		full := fullVersion{Version: v, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
		return full.print(cmd.OutOrStdout(), *output)
	}
	return cmd
}

func (v fullVersion) print(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	if format == "yaml" {
		text, err := yaml.Marshal(v)
		if err != nil {
			return fmt.Errorf("write versions as YAML: %w", err)
		}
		_, err = w.Write(text)
		return err
	}
	lines := []Part{{"knarr", v.Knarr}, {"kubernetes", v.Kubernetes}}
	lines = append(lines, v.Parts...)
	lines = append(lines, Part{"go", v.Go}, Part{"platform", v.Platform}, Part{"commit", v.Commit}, Part{"date", v.Date})
	for _, l := range lines {
		if l.Version != "" {
			fmt.Fprintf(w, "%-12s%s\n", l.Name, l.Version)
		}
	}
	return nil
}
