package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/knarr-dev/knarr/pkg/cluster"
	"github.com/knarr-dev/knarr/pkg/host"
	"github.com/knarr-dev/knarr/pkg/pki"
	"github.com/knarr-dev/knarr/pkg/status"
)

func newCertificateRotateKey() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-service-account-key [flags]",
		Short: "Sign tokens of service accounts by a new key",
		Long: "Makes a new key, by which tokens of service accounts are signed from now on. A\n" +
			"running server has it in use when this command ends; nothing restarts. Tokens of\n" +
			"the old key are good until they end, or until --keep is over; the published keys\n" +
			"(/openid/v1/jwks) hold both.\n\n" +
			"--drop has the tokens of all former keys refused within ten seconds. Kubelets give\n" +
			"pods new tokens once most of an hour is over, so that a day after a new key only\n" +
			"tokens that were asked for a longer time, and those in Secrets of type\n" +
			"kubernetes.io/service-account-token, are of an old one.",
		Example: "  sudo knarr certificate rotate-service-account-key\n\n" +
			"  # the old key was seen by somebody: its tokens end in two hours\n" +
			"  sudo knarr certificate rotate-service-account-key --keep 2h\n\n" +
			"  # refuse tokens of former keys now\n" +
			"  sudo knarr certificate rotate-service-account-key --drop",
		Args:                  noArguments,
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	given := bindOptions(cmd, options("config", "data-dir", "run-dir"))
	keep := cmd.Flags().Duration("keep", pki.ServiceAccountKeep, "for how long tokens of the old key are good")
	drop := cmd.Flags().Bool("drop", false, "make no key, and refuse tokens of former ones from now on")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *drop && cmd.Flags().Changed("keep") {
			return &usageError{errors.New("--drop and --keep exclude each other")}
		}
		if *keep < 0 {
			return &usageError{errors.New("--keep must not be negative")}
		}
		cfg := loadLeniently(cmd, *given)
		query := url.Values{"keep": {keep.String()}, "drop": {fmt.Sprint(*drop)}}
		_, err := status.Ask(cmd.Context(), cfg.StatusSocket(), http.MethodPost, cluster.RotateKeyPath+"?"+query.Encode())
		if errors.Is(err, status.ErrNotRunning) {
			var lock *host.Lock
			if lock, err = host.TakeLock(cfg.DataDir); err == nil {
				defer lock.Close()
				dir := filepath.Join(cfg.ServerDir(), "tls")
				if *drop {
					_, err = pki.DropServiceAccounts(dir)
				} else {
					err = pki.RotateServiceAccount(dir, time.Now(), *keep)
				}
			}
		}
		if err != nil {
			return fmt.Errorf("replace the key of service accounts: %w", err)
		}
		text := fmt.Sprintf("Tokens of service accounts are signed by a new key. Those of the old one are good until %s at the longest.\n", time.Now().Add(*keep).UTC().Format(time.RFC3339))
		if *drop {
			text = "Tokens of former keys are refused from now on.\n"
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}
