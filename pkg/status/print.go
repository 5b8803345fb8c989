package status

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
	"sigs.k8s.io/yaml"
)

// Formats are what Print knows.
func Formats() []string { return []string{"table", "json", "yaml"} }

// Print writes the report as table (also when format is empty), json or yaml.
func Print(w io.Writer, r *Report, format string) error {
	switch format {
	case "", "table":
		return printTable(w, r)
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	case "yaml":
		text, err := yaml.Marshal(r)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	return fmt.Errorf("unknown output format %q (want %s)", format, strings.Join(Formats(), ", "))
}

// PrintNext is Print for one report of several: a table has its time above it, and
// JSON is one line.
func PrintNext(w io.Writer, r *Report, format string) error {
	switch format {
	case "json":
		return json.NewEncoder(w).Encode(r)
	case "yaml":
		fmt.Fprintln(w, "---")
	default:
		fmt.Fprintf(w, "\n%s\n", r.At.UTC().Format(time.RFC3339))
	}
	return Print(w, r, format)
}

func printTable(w io.Writer, r *Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tREADY AFTER\tSINCE\tLAST ERROR")
	for _, c := range r.Components {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", c.Name, c.State, readyAfter(c), age(r.At, c.Since), remark(c))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := printTroubles(w, r); err != nil || r.Agent == nil {
		return err
	}
	return printAgent(w, r)
}

func printTroubles(w io.Writer, r *Report) error {
	if len(r.Troubles) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nADD-ON\tOBJECT\tSINCE\tERROR")
	for _, x := range r.Troubles {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", x.Part, x.Object, age(r.At, x.Since), strings.Join(strings.Fields(x.Error), " "))
	}
	return t.Flush()
}

func printAgent(w io.Writer, r *Report) error {
	a := r.Agent
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	server := a.Server
	if server == "" {
		server = "none answers"
	}
	fmt.Fprintf(t, "\nnode\t%s\nserver\t%s\nlast contact\t%s ago\n", a.Node, server, age(r.At, a.LastContact))
	if a.Offline {
		fmt.Fprintln(t, "offline\tthe node lives by what it kept")
	}
	for _, c := range a.Certificates {
		fmt.Fprintf(t, "%s certificate\texpires %s\n", c.Use, c.Expires.UTC().Format(time.RFC3339))
	}
	fmt.Fprintln(t, "\nSERVER\tSTATE\tTUNNEL\tLAST ERROR")
	for _, s := range a.Servers {
		tunnel, remark := "-", "-"
		if !s.Tunnel.IsZero() {
			tunnel = age(r.At, s.Tunnel)
		}
		if s.LastError != "" {
			remark = strings.Join(strings.Fields(s.LastError), " ")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Address, s.State, tunnel, remark)
	}
	return t.Flush()
}

func readyAfter(c component.Status) string {
	if c.ReadyAfter.Duration == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3fs", c.ReadyAfter.Seconds())
}

// remark is one line: the error, or what keeps the component waiting.
func remark(c component.Status) string {
	if len(c.WaitsFor) > 0 && c.LastError == "" {
		return "(waits for " + strings.Join(c.WaitsFor, ", ") + ")"
	}
	if c.LastError == "" {
		return "-"
	}
	return strings.Join(strings.Fields(c.LastError), " ")
}

// age tells the time between in two units at most: 42s, 3m12s, 5h3m, 12d4h.
func age(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	s := int64(max(0, now.Sub(then)) / time.Second)
	switch m, h, d := s/60, s/3600, s/86400; {
	case m == 0:
		return fmt.Sprintf("%ds", s)
	case h == 0:
		return fmt.Sprintf("%dm%ds", m, s%60)
	case d == 0:
		return fmt.Sprintf("%dh%dm", h, m%60)
	default:
		return fmt.Sprintf("%dd%dh", d, h%24)
	}
}
