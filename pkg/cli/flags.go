package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// groupAnnotation on a flag holds the heading it is shown under.
const groupAnnotation = "knarr_group"

// bindOptions gives cmd a flag for each option. What was typed is found in the
// result once the flags are parsed.
func bindOptions(cmd *cobra.Command, options []config.Option) *[]config.Given {
	given := new([]config.Given)
	bindOptionsTo(cmd, given, options)
	return given
}

func bindOptionsTo(cmd *cobra.Command, given *[]config.Given, options []config.Option) {
	for _, o := range options {
		f := cmd.Flags().VarPF(&optionFlag{option: o, given: given}, o.Name, o.Short, describe(o))
		f.Annotations = map[string][]string{groupAnnotation: {o.Group}}
		f.Hidden = o.Hidden
		if o.IsSwitch() {
			f.NoOptDefVal = "true"
		}
		// Registering fails for unknown or repeated names only.
		_ = cmd.RegisterFlagCompletionFunc(o.Name, completeOption(o))
	}
}

// optionFlag notes what was typed and leaves reading it to package config,
// which tells all mistakes at once and in one form.
type optionFlag struct {
	option config.Option
	given  *[]config.Given
}

var _ pflag.Value = (*optionFlag)(nil)

func (f *optionFlag) Set(text string) error {
	*f.given = append(*f.given, config.Given{Name: f.option.Name, Value: text})
	return nil
}

func (f *optionFlag) String() string { return "" }

func (f *optionFlag) Type() string { return f.option.Arg }

// describe is an option's help text with its choices and default.
func describe(o config.Option) string {
	var notes []string
	if len(o.Choices) > 0 {
		notes = append(notes, strings.Join(o.Choices, ", "))
	}
	if o.Default != "" {
		notes = append(notes, "default "+o.Default)
	}
	if o.DefaultText != "" {
		notes = append(notes, "default: "+o.DefaultText)
	}
	if len(notes) == 0 {
		return o.Help
	}
	return fmt.Sprintf("%s (%s)", o.Help, strings.Join(notes, "; "))
}

func completeOption(o config.Option) cobra.CompletionFunc {
	switch {
	case o.IsSwitch():
		return cobra.FixedCompletions([]string{"true", "false"}, cobra.ShellCompDirectiveNoFileComp)
	case len(o.Choices) > 0:
		return cobra.FixedCompletions(o.Choices, cobra.ShellCompDirectiveNoFileComp)
	case o.Arg == "folder":
		return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
	case o.Arg == "file", o.Arg == "path", o.Arg == "socket":
		return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	}
	return cobra.NoFileCompletions
}

// options returns those of the given names, in that order.
func options(names ...string) []config.Option {
	var found []config.Option
	for _, o := range config.Options() {
		if slices.Contains(names, o.Name) {
			found = append(found, o)
		}
	}
	return found
}

// outputFlag adds -o, which takes one of formats.
func outputFlag(cmd *cobra.Command, formats []string, fallback, help string) *string {
	output := cmd.Flags().StringP("output", "o", "", help+" ("+strings.Join(formats, ", ")+"; default "+fallback+")")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *output == "" {
			*output = fallback
		}
		if !slices.Contains(formats, *output) {
			return usagef("--output: %q is not known; give one of %s", *output, strings.Join(formats, ", "))
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
	return output
}

// flagError explains what the parser of flags refused.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return usagef("%w; %q tells what is known", err, cmd.CommandPath()+" --help")
	}
	if unknown.GetSpecifiedShortnames() != "" {
		return usagef("unknown flag -%s; %q lists all", unknown.GetSpecifiedName(), cmd.CommandPath()+" --help")
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	name := unknown.GetSpecifiedName()
	if near := config.Nearest(name, names); near != "" {
		return usagef("unknown flag --%s; did you mean --%s?", name, near)
	}
	return usagef("unknown flag --%s; %q lists all", name, cmd.CommandPath()+" --help")
}
