package main

import "github.com/spf13/cobra"

// subcommands are all there are, in the order of the help.
var subcommands = []func() *cobra.Command{
	newServeCommand,
	newMountCommand,
	newUmountCommand,
	newTopCommand,
	newPingCommand,
	newExecCommand,
	newDoctorCommand,
	newLeaseCommand,
	newDrillCommand,
	newFailoverCommand,
	newUmountOnlyCommand,
	newDropUnusedCommand,
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "loopnfs",
		Short: "An NFS server that can be mounted on the machine it runs on",
		Long: `loopnfs is an NFSv3 server, and a client for it, that keep working when they run
on the same machine and that machine runs out of memory.`,
		Example: `  loopnfs serve --export /srv/data
  loopnfs mount 127.0.0.1:/data /mnt
  loopnfs umount /mnt
  loopnfs doctor
  loopnfs drill`,
		SilenceErrors: true, // main prints them
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetUsageTemplate(usageTemplate)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	for _, newCommand := range subcommands {
		root.AddCommand(newCommand())
	}
	wrapArgs(root)
	return root
}

// wrapArgs makes every error about arguments one of usage.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// usageTemplate is cobra's, with examples and exit codes at the end.
const usageTemplate = `Usage:
  {{if .HasParent}}{{.UseLine}}{{else}}{{.CommandPath}} COMMAND{{end}}
{{- if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}
{{- if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
{{- if .HasExample}}

Examples:
{{.Example}}{{end}}

` + exitCodesHelp + `
`
