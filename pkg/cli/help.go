package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	helpWidth = 80
	// textColumn is where the explanation of a flag begins.
	textColumn = 34
)

func printHelp(cmd *cobra.Command, _ []string) {
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "%s\n\n", text)
	printUsage(w, cmd)
}

func printUsage(w io.Writer, cmd *cobra.Command) {
	fmt.Fprint(w, "Usage:\n")
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "  %s [command]\n", cmd.CommandPath())
	}
	if cmd.Runnable() && cmd.HasParent() {
		fmt.Fprintf(w, "  %s\n", cmd.UseLine())
	}
	if cmd.HasExample() {
		fmt.Fprintf(w, "\nExamples:\n%s\n", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprint(w, "\nCommands:\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() || sub.Name() == "help" {
				printEntry(w, "  "+sub.Name(), sub.Short, 15)
			}
		}
	}
	printFlags(w, cmd)
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\n\"%s [command] --help\" tells more about a command.\n", cmd.CommandPath())
	}
}

// printFlags prints the flags of a command, those with a group under its heading.
func printFlags(w io.Writer, cmd *cobra.Command) {
	if cmd.DisableFlagParsing {
		return
	}
	groups := map[string][]*pflag.Flag{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		heading := "Flags"
		if (cmd.Name() == "server" || cmd.Name() == "check") && len(f.Annotations[groupAnnotation]) > 0 {
			heading = f.Annotations[groupAnnotation][0]
		}
		groups[heading] = append(groups[heading], f)
	})
	for _, heading := range append(config.Groups(), "Flags") {
		if len(groups[heading]) == 0 {
			continue
		}
		title := heading
		if heading == "Flags" && len(groups) > 1 {
			title = "Other flags"
		}
		fmt.Fprintf(w, "\n%s:\n", title)
		for _, f := range groups[heading] {
			printEntry(w, flagHead(f), f.Usage, textColumn)
		}
	}
}

func flagHead(f *pflag.Flag) string {
	head := "      --" + f.Name
	if f.Shorthand != "" {
		head = "  -" + f.Shorthand + ", --" + f.Name
	}
	arg := f.Value.Type()
	if f.NoOptDefVal != "" || arg == "bool" {
		return head
	}
	if arg == "string" {
		arg = "format"
	}
	return head + " " + arg
}

// printEntry prints a name and, from the given column on, its explanation. A
// name too long for that has a line of its own.
func printEntry(w io.Writer, head, text string, column int) {
	lines := wrap(text, helpWidth-column)
	if len(head)+2 > column {
		fmt.Fprintln(w, head)
		head = ""
	}
	for _, line := range lines {
		fmt.Fprintf(w, "%-*s%s\n", column, head, line)
		head = ""
	}
}

// wrap breaks text between words into lines of at most width letters.
func wrap(text string, width int) []string {
	var lines []string
	for word := range strings.FieldsSeq(text) {
		last := len(lines) - 1
		if last < 0 || len(lines[last])+1+len(word) > width {
			lines = append(lines, word)
			continue
		}
		lines[last] += " " + word
	}
	return lines
}
