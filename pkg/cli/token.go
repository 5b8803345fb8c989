package cli

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/knarr-dev/knarr/pkg/token"
)

func newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke the tokens that machines join with",
		Long: "Makes, lists and revokes the tokens by which machines join the cluster. A token\n" +
			"is a bootstrap token of Kubernetes, kept as a Secret in kube-system, with the\n" +
			"hash of the cluster's authority before it: knarr.<hash>.<id>.<secret>. The\n" +
			"server keeps one of its own, which does not expire, in server/node-token of its\n" +
			"data dir.",
		Example: "  # a command that lets one more machine join\n" +
			"  sudo knarr token create --ttl 1h --print-join-command\n\n" +
			"  # which tokens there are, and no more of one\n" +
			"  sudo knarr token list\n" +
			"  sudo knarr token delete abc123",
		Args:                  knownCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newTokenCreate(), newTokenList(), newTokenDelete(), newTokenGenerate())
	return cmd
}

func newTokenCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make a token, and print it",
		Long: "Makes a token by which machines can join, and prints it. Whoever has it can make\n" +
			"his machine a node: it is a secret until it expires or is deleted.",
		Example: "  # a token for a day\n" +
			"  sudo knarr token create\n\n" +
			"  # what to type on the machine that is to join\n" +
			"  sudo knarr token create --ttl 1h --description 'rack 7' --print-join-command",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	cmd.Flags().SortFlags = false
	ttl, usages, groups := 24*time.Hour, []string(nil), []string(nil)
	description := ""
	cmd.Flags().VarP(&valueFlag{"duration", func(text string) (err error) {
		if ttl, err = time.ParseDuration(text); err == nil && ttl < 0 {
			err = errors.New("less than nothing")
		}
		return err
	}}, "ttl", "", "how long the token is good, such as 90m; 0 for ever (default 24h)")
	cmd.Flags().VarP(&valueFlag{"usage,...", func(text string) error {
		for u := range strings.SplitSeq(text, ",") {
			if !slices.Contains(token.Usages(), u) {
				return fmt.Errorf("%q is no usage", u)
			}
			usages = append(usages, u)
		}
		return nil
	}}, "usages", "", "what the token is for (authentication, signing; default both)")
	cmd.Flags().VarP(&valueFlag{"group,...", func(text string) error {
		groups = append(groups, strings.Split(text, ",")...)
		return nil
	}}, "groups", "", "groups of whoever has the token; each begins with system:bootstrappers: (default "+token.DefaultGroup+")")
	cmd.Flags().VarP(&valueFlag{"text", func(text string) error { description = text; return nil }}, "description", "", "what the token is for, in words")
	joinCommand := cmd.Flags().Bool("print-join-command", false, "print the command that joins a machine, with the token in it")
	_ = cmd.RegisterFlagCompletionFunc("usages", cobra.FixedCompletions(token.Usages(), cobra.ShellCompDirectiveNoFileComp))
	connect := apiFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t, err := token.Generate()
		if err != nil {
			return err
		}
		g := token.Grant{Token: t, Usages: usages, Groups: groups, Description: description}
		if ttl > 0 {
			g.Expires = time.Now().Add(ttl)
		}
		if usages == nil {
			g.Usages = token.Usages()
		}
		if groups == nil {
			g.Groups = []string{token.DefaultGroup}
		}
		if _, err := g.Secret(); err != nil {
			return &usageError{err} // before a server is looked for
		}
		api, err := connect()
		if err != nil {
			return err
		}
		line, err := createToken(cmd.Context(), api, g, *joinCommand)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), line)
		return err
	}
	return cmd
}

// createToken returns the token, or the command that joins a machine by it.
func createToken(ctx context.Context, api *apiAccess, g token.Grant, joinCommand bool) (string, error) {
	t, address := g.Token, ""
	var err error
	if t.CAHash, err = authorityHash(api.ca); err != nil {
		return "", fmt.Errorf("find the cluster's authority in %s: %w", api.source, err)
	}
	if joinCommand { // a token that nobody is told of must not be left behind
		if address, err = serverAddress(ctx, api.client); err != nil {
			return "", err
		}
	}
	secret, err := g.Secret()
	if err != nil {
		return "", err
	}
	if _, err := api.client.CoreV1().Secrets(token.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("create %s: %w", t.Redacted(), err)
	}
	if joinCommand {
		return "knarr agent --server https://" + address + " --token " + t.String(), nil
	}
	return t.String(), nil
}

// authorityHash is that of the first certificate.
func authorityHash(caPEM []byte) (string, error) {
	for {
		var block *pem.Block
		if block, caPEM = pem.Decode(caPEM); block == nil {
			return "", errors.New("there is no certificate of one")
		}
		if block.Type == "CERTIFICATE" {
			return token.HashCA(block.Bytes), nil
		}
	}
}

// serverAddress is where members of the cluster reach the API server.
func serverAddress(ctx context.Context, client kubernetes.Interface) (string, error) {
	list, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes",
	})
	if err != nil {
		return "", fmt.Errorf("ask for the server's address: %w", err)
	}
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			if len(e.Addresses) > 0 && len(s.Ports) > 0 && s.Ports[0].Port != nil {
				return net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[0].Port))), nil
			}
		}
	}
	return "", errors.New("ask for the server's address: the API server has not published one (--advertise-address)")
}

func newTokenList() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "Show the tokens that there are, without their secrets",
		Long: "Shows the tokens by which machines can join: their ids, how long they are good,\n" +
			"what for, and what was said of them. Their secrets are not shown.",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	output := outputFlag(cmd, []string{"table", "json", "yaml"}, "table", "form of the output")
	connect := apiFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := connect()
		if err != nil {
			return err
		}
		tokens, broken, err := listTokens(cmd.Context(), api.client)
		if err != nil {
			return err
		}
		if broken != nil {
			printError(cmd.ErrOrStderr(), fmt.Errorf("warning: %w", broken))
		}
		return printTokens(cmd.OutOrStdout(), tokens, time.Now(), *output)
	}
	return cmd
}

// listedToken is what may be told of a token.
type listedToken struct {
	ID string `json:"id"`
	// Expires is absent for a token that does not.
	Expires     *time.Time `json:"expires,omitempty"`
	Usages      []string   `json:"usages"`
	Groups      []string   `json:"groups,omitempty"`
	Description string     `json:"description,omitempty"`
}

// listTokens also tells which Secrets it could not read; they let nobody in.
func listTokens(ctx context.Context, client kubernetes.Interface) (tokens []listedToken, broken, _ error) {
	list, err := client.CoreV1().Secrets(token.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("type", string(token.SecretType)).String(),
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list tokens: %w", err)
	}
	tokens = []listedToken{}
	for _, s := range list.Items {
		if s.Type != token.SecretType {
			continue
		}
		g, err := token.Read(&s)
		if err != nil {
			broken = errors.Join(broken, err)
			continue
		}
		t := listedToken{ID: g.Token.ID, Usages: append([]string{}, g.Usages...), Groups: g.Groups, Description: g.Description}
		if !g.Expires.IsZero() {
			t.Expires = &g.Expires
		}
		tokens = append(tokens, t)
	}
	slices.SortFunc(tokens, func(a, b listedToken) int { return strings.Compare(a.ID, b.ID) })
	return tokens, broken, nil
}

func printTokens(w io.Writer, tokens []listedToken, now time.Time, format string) error {
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(tokens)
	case "yaml":
		text, err := yaml.Marshal(tokens)
		if err != nil {
			return fmt.Errorf("write tokens as YAML: %w", err)
		}
		_, err = w.Write(text)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tTTL\tEXPIRES\tUSAGES\tDESCRIPTION")
	for _, one := range tokens {
		left, expires := "forever", "never"
		if one.Expires != nil {
			expires = one.Expires.UTC().Format(time.RFC3339)
			left = "expired"
			if d := one.Expires.Sub(now); d > 0 {
				left = d.Round(time.Second).String()
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", one.ID, left, expires, strings.Join(one.Usages, ","), strings.Join(strings.Fields(one.Description), " "))
	}
	return t.Flush()
}

func newTokenDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete ID... [flags]",
		Short: "Revoke tokens",
		Long: "Revokes tokens, given by their ids or as a whole. Machines that have joined stay\n" +
			"in the cluster; \"kubectl delete node\" makes them leave. In place of the server's\n" +
			"own token the next start of the server makes another.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("give the id of a token; %q shows them", "knarr token list")
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	connect := apiFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ids, err := tokenIDs(args)
		if err != nil {
			return err
		}
		api, err := connect()
		if err != nil {
			return err
		}
		return deleteTokens(cmd.Context(), api.client, cmd.OutOrStdout(), ids)
	}
	return cmd
}

// tokenIDs reads ids, and whole tokens, which it does not repeat in errors.
func tokenIDs(args []string) ([]string, error) {
	var ids []string
	for i, arg := range args {
		if !token.IsID(arg) {
			t, err := token.Parse(arg)
			if err != nil {
				return nil, usagef("argument %d is neither a token nor the id of one", i+1)
			}
			arg = t.ID
		}
		ids = append(ids, arg)
	}
	return ids, nil
}

func deleteTokens(ctx context.Context, client kubernetes.Interface, w io.Writer, ids []string) error {
	var failed error
	for _, id := range ids {
		err := deleteToken(ctx, client, id)
		if err == nil {
			_, err = fmt.Fprintf(w, "token %s deleted\n", id)
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// deleteToken leaves a Secret alone that is no token.
func deleteToken(ctx context.Context, client kubernetes.Interface, id string) error {
	secrets := client.CoreV1().Secrets(token.Namespace)
	s, err := secrets.Get(ctx, token.SecretName(id), metav1.GetOptions{})
	if err == nil && s.Type == token.SecretType {
		err = secrets.Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID}})
	} else if err == nil || apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no token %s; \"knarr token list\" shows those that there are", id)
	}
	if err != nil {
		return fmt.Errorf("delete token %s: %w", id, err)
	}
	return nil
}

func newTokenGenerate() *cobra.Command {
	return &cobra.Command{
		Use:   "generate",
		Short: "Print a token that no cluster knows yet",
		Long: "Prints a token at random, <id>.<secret>, and asks no server. A server that is\n" +
			"started with it keeps it as its own, so that machines can be given it before\n" +
			"there is a server. They then cannot check which server they talk to.",
		Example: "  # the same token for a server and the machines that are to join it\n" +
			"  knarr token generate > node.token",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := token.Generate()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.String())
			return err
		},
	}
}
