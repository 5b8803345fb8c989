package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/status"
)

// restartPatience is how long a process may take to start anew in place.
const restartPatience = 3 * time.Minute

func newCertificateRotateCA() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-ca [flags]",
		Short: "Replace the cluster's authorities, with an overlap",
		Long: "Replaces the three authorities of the cluster in two steps. Both restart the\n" +
			"server in place, which pods do not notice; the API is away for a second or two.\n\n" +
			"The first makes new authorities (or takes yours) and trusts old and new. Agents\n" +
			"learn of them, get new certificates and restart in place by themselves. Everything\n" +
			"that knows only the old authority goes on: kubeconfigs, tokens, pods.\n\n" +
			"The second, --finish, lets the old ones go. It is refused while a node has not\n" +
			"followed. Kubeconfigs, join tokens and programs in pods that read the authority\n" +
			"before the first step are refused from then on.",
		Example: "  # begin; the new token for nodes is printed\n" +
			"  sudo knarr certificate rotate-ca\n\n" +
			"  # once kubeconfigs were handed out anew and long-lived pods restarted\n" +
			"  sudo knarr certificate rotate-ca --finish\n\n" +
			"  # with authorities of your own, and an end by itself after a week\n" +
			"  sudo knarr certificate rotate-ca --authorities /root/new-ca --finish-after 168h",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, options("config", "data-dir", "run-dir", "write-kubeconfig"))
	finish := cmd.Flags().Bool("finish", false, "let the old authorities go")
	force := cmd.Flags().Bool("force", false, "with --finish: also if nodes have not followed; they are lost until they join anew")
	from := cmd.Flags().String("authorities", "", "folder with server-ca, client-ca or request-header-ca, .crt and .key each (default: new ones are made)")
	after := cmd.Flags().Duration("finish-after", 0, "finish by itself after this time, as soon as all nodes have followed (default: never)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *finish && (*from != "" || *after != 0) {
			return &usageError{errors.New("--finish takes neither --authorities nor --finish-after")}
		}
		if *force && !*finish {
			return &usageError{errors.New("--force goes with --finish")}
		}
		cfg := loadLeniently(cmd, *given)
		query, path := url.Values{}, cluster.RotateCAPath
		if *from != "" {
			abs, err := filepath.Abs(*from)
			if err != nil {
				return fmt.Errorf("find the new authorities: %w", err)
			}
			query.Set("from", abs)
		}
		if *after != 0 {
			query.Set("finishAfter", after.String())
		}
		if *finish {
			path = cluster.FinishCAPath
			query.Set("force", fmt.Sprint(*force))
		}
		if err := orderRestart(cmd.Context(), cfg, path+"?"+query.Encode()); err != nil {
			return fmt.Errorf("replace the authorities: %w", err)
		}
		return tellRotated(cmd, cfg, *finish)
	}
	return cmd
}

// orderRestart gives an order after which the process starts anew, and waits until it
// has.
func orderRestart(ctx context.Context, cfg *config.Config, path string) error {
	body, err := status.Ask(ctx, cfg.StatusSocket(), http.MethodPost, path)
	if err != nil {
		return err
	}
	var answer cluster.Rotated
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, restartPatience)
	defer cancel()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	var last error
	for {
		report, err := status.Fetch(ctx, cfg.StatusSocket())
		switch {
		case err != nil:
			last = err
		case report.StartedAt.Equal(answer.Started):
			last = errors.New("it has not ended yet")
		case report.Ready:
			return nil
		default:
			last = notReady(report)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the server to start anew: %w: its log tells more", last)
		}
	}
}

func tellRotated(cmd *cobra.Command, cfg *config.Config, finished bool) error {
	text, err := os.ReadFile(filepath.Join(cfg.ServerDir(), "node-token"))
	if err != nil {
		return fmt.Errorf("read the new token for nodes: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if finished {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "The old authorities are gone. What knows only them is refused.\nThe token for new nodes: %s\n", token)
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), `Old and new authorities are trusted. Nodes follow by themselves.
The token for new nodes: %s
The administrator's kubeconfig (%s) trusts both. Before you end the overlap:
  - hand out kubeconfigs anew, and tokens of "knarr token create"
  - restart pods that talk to the API and have run since before (kubectl rollout restart)
Then: knarr certificate rotate-ca --finish
`, token, cfg.Kubeconfig.Path)
	return err
}
