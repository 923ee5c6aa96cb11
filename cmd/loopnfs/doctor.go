package main

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"loopnfs/internal/doctor"
)

type doctorOptions struct {
	json bool
	fix  bool
}

// errDanger is the error of a host that is not safe.
var errDanger = errors.New("this host is not safe for loop-back mounts")

func newDoctorCommand() *cobra.Command {
	var opts doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell whether this host is safe for loop-back mounts",
		Long: `Finds the NFS mounts whose server runs on this host, whatever server that is, and
says what can make them stand still when memory runs out: in the kernel, in the
server, in the settings. Each finding comes with the reason and what to type. It
looks at nothing that can hang, and changes nothing.

With --fix it does what can be done while everything runs: oom_score_adj of
servers, the caps of the mounts' dirty pages, vm.min_free_kbytes, and a dirty limit
that is plainly unsafe. It says what it changed, and how to make that permanent.

Root sees more; without root it says what it could not see. The exit code is 1 if
there is a danger, that is, if a loop-back mount can stand still for good; notes
and warnings do not count.`,
		Example: `  loopnfs doctor
  loopnfs doctor --fix
  loopnfs doctor --json | jq -r '.findings[] | select(.severity == "danger") | .what'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDoctor(doctor.ThisHost(), &opts, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.json, "json", false, "print the same facts as JSON")
	f.BoolVar(&opts.fix, "fix", false, "change what can be changed while everything runs")
	return cmd
}

func runDoctor(h *doctor.Host, opts *doctorOptions, out io.Writer) error {
	report, err := doctor.Examine(h)
	if err == nil && opts.fix {
		report, err = doctor.Fix(h, report)
	}
	if err != nil {
		return err
	}
	if opts.json {
		err = writeReportJSON(out, report)
	} else {
		_, err = io.WriteString(out, reportText(report))
	}
	switch {
	case err != nil:
		return err
	case report.Verdict == doctor.Danger:
		return errDanger
	}
	return fixErrors(report.Fixed)
}

func writeReportJSON(out io.Writer, r *doctor.Report) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// fixErrors names what could not be changed.
func fixErrors(fixed []doctor.Fixed) error {
	var failed []string
	for _, f := range fixed {
		if f.Error != "" {
			failed = append(failed, f.Path)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return errors.New("could not change " + strings.Join(failed, ", ") + ": run this as root")
}
