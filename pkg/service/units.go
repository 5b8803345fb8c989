package service

import (
	"fmt"
	"strings"
)

// unit is the text of the init system's file.
func (r *Record) unit() string {
	switch r.Init {
	case Systemd:
		return r.systemdUnit()
	case OpenRC:
		return r.openRCScript()
	}
	return ""
}

// systemdUnit is the unit of systemd.
func (r *Record) systemdUnit() string {
	command := []string{r.Executable(), r.Role}
	for _, a := range append(command, r.Args...)[2:] {
		command = append(command, systemdQuote(a))
	}
	restart := ""
	if r.Role == "agent" {
		restart = "# Exit code 3: the node was deleted from its cluster.\nRestartPreventExitStatus=3\n"
	}
	return strings.NewReplacer("UNITNAME", r.Name, "ROLE", r.Role, "COMMAND", strings.Join(command, " "), "ENVFILE", r.EnvFile(), "RESTART", restart).Replace(
		`# Made by knarr install, which writes it anew: put changes into a drop-in
# (systemctl edit UNITNAME).
[Unit]
Description=Knarr, a whole Kubernetes in one process (ROLE)
Wants=network-online.target
After=network-online.target local-fs.target time-sync.target firewalld.service

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=-ENVFILE
ExecStart=COMMAND
# Knarr starts anew in the same process, by the executable that is there then.
ExecReload=/bin/kill -HUP $MAINPID
# Pods go on while Knarr restarts, and have control groups below its own.
KillMode=process
Delegate=yes
# DNS' sockets are kept over a restart.
FileDescriptorStoreMax=16
Restart=always
RestartSec=5s
RESTART# An agent may wait hours for its server.
TimeoutStartSec=0
TimeoutStopSec=3min
WatchdogSec=3min
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`)
}

// openRCScript is the service script of OpenRC. supervise-daemon starts Knarr
// again when it ends, and leaves the pods alone when it stops it.
func (r *Record) openRCScript() string {
	var args []string
	for _, a := range append([]string{r.Role}, r.Args...) {
		args = append(args, shellQuote(a))
	}
	return strings.NewReplacer("ROLE", r.Role, "EXECUTABLE", r.Executable(), "ARGUMENTS", doubleQuote(strings.Join(args, " ")), "ENVFILE", r.EnvFile()).Replace(
		`#!/sbin/openrc-run
# Made by knarr install, which writes it anew: put changes into /etc/conf.d.
name="knarr"
description="Knarr, a whole Kubernetes in one process (ROLE)"
supervisor="supervise-daemon"
command="EXECUTABLE"
command_args=ARGUMENTS
pidfile="/run/${RC_SVCNAME}.pid"
output_log="/var/log/${RC_SVCNAME}.log"
error_log="/var/log/${RC_SVCNAME}.log"
respawn_delay=5
respawn_max=0
# Pods go on while Knarr restarts.
rc_cgroup_cleanup="no"
rc_ulimit="-n 1048576 -u unlimited"
retry="TERM/180/KILL/5"
extra_started_commands="reload"

depend() {
	need localmount
	want cgroups net
	after cgroups net firewall ntp-client
}

start_pre() {
	if [ -f ENVFILE ]; then
		set -a
		. ENVFILE
		set +a
	fi
}

reload() {
	ebegin "Starting ${RC_SVCNAME} anew in place"
	supervise-daemon "${RC_SVCNAME}" --signal HUP --pidfile "${pidfile}"
	eend $?
}
`)
}

// environment is the text of a file that systemd and shells read alike.
func environment(vars []string) (string, error) {
	text := strings.Builder{}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		if strings.ContainsAny(value, "\n\r\x00") {
			return "", fmt.Errorf("%s has a line break in it, which a unit's environment can't have: use a file instead", name)
		}
		fmt.Fprintf(&text, "%s=%s\n", name, doubleQuote(value))
	}
	return text.String(), nil
}

// parseEnvironment reads what environment wrote. Lines of others' are kept as
// they can be.
func parseEnvironment(text string) []string {
	var vars []string
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || name == "" || name[0] == '#' {
			continue
		}
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			value = unescape(value[1 : len(value)-1])
		}
		vars = append(vars, name+"="+value)
	}
	return vars
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// doubleQuote quotes for shells, and for EnvironmentFile= of systemd, which
// knows the same four escapes.
func doubleQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(s) + `"`
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// systemdQuote quotes a word of ExecStart=, in which systemd also expands
// variables and its own specifiers.
func systemdQuote(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", "$$", "%", "%%").Replace(s)
	if s != "" && !strings.ContainsAny(s, " \t;'\"\\") {
		return s
	}
	return `"` + s + `"`
}
