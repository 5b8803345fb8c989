package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/status"
	"github.com/knarr-dev/knarr/pkg/usage"
)

func newTop() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top [flags]",
		Short: "Show what memory and processor time Knarr's own parts use",
		Long: "Shows processor time, heap and goroutines of each part of the Knarr that runs\n" +
			"here. (For pods and nodes: kubectl top.)\n\n" +
			"Processor time is sampled a hundred times a second while the command waits. The\n" +
			"heap of a part is what its packages have allocated, an estimate. What serves\n" +
			"several parts at once, such as client-go, the network and the garbage collector,\n" +
			"is \"shared\", and so is what cannot be told. Programs that run beside Knarr, a\n" +
			"shim for each pod, are not in it.",
		Example: "  sudo knarr top\n\n" +
			"  # a longer look, for a program\n" +
			"  sudo knarr top --sample 30s -o json",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	sample := cmd.Flags().Duration("sample", 3*time.Second, "for how long processor time is sampled, up to a minute")
	output := outputFlag(cmd, []string{"table", "json"}, "table", "form of the output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *sample <= 0 || *sample > cluster.UsageLongest {
			return &usageError{errors.New("--sample: give more than 0 and at most a minute")}
		}
		cfg := loadLeniently(cmd, *given)
		ctx, cancel := context.WithTimeout(cmd.Context(), *sample+30*time.Second)
		defer cancel()
		text, err := status.Ask(ctx, cfg.StatusSocket(), http.MethodGet, cluster.UsagePath+"?sample="+sample.String())
		if err != nil {
			return err
		}
		var r usage.Report
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("read what the server says that it uses (is it of another version of knarr?): %w", err)
		}
		return printParts(cmd.OutOrStdout(), &r, *output)
	}
	return cmd
}

func printParts(w io.Writer, r *usage.Report, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	const mib = 1 << 20
	fmt.Fprintf(w, "%.0f MiB resident, of it heap %.0f MiB and stacks %.0f MiB; %.0f m of processor time over %.0f s; %d goroutines\n\n",
		float64(r.ResidentBytes)/mib, float64(r.HeapBytes)/mib, float64(r.StackBytes)/mib, r.CPU*1000, r.Seconds, r.Goroutines)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "CPU (m)\tHEAP (MiB)\tGOROUTINES\t PART\t")
	for _, p := range r.Parts {
		fmt.Fprintf(t, "%.0f\t%.1f\t%d\t %s\t\n", p.CPU*1000, float64(p.HeapBytes)/mib, p.Goroutines, p.Name)
	}
	return t.Flush()
}
