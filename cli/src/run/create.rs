//! `mvm create`.

use clap::{ArgAction, Args};

use super::keep::create;
use super::{OrderArguments, Ordered, WhatArguments};
use crate::process::ExitCode;
use crate::{complain, exit_code, print};

const MORE: &str = "`mvm create --help` has all options, their syntax, and examples.";

const EXAMPLES: &str = "\
Examples:
  mvm create --name web -p 8080:80 nginx    a container that does not run yet
  mvm start web                             starts it";

/// Arguments of `mvm create`, which are those of `docker create`.
#[derive(Args)]
#[command(after_help = MORE, after_long_help = EXAMPLES, disable_help_flag = true)]
#[command(mut_arg("plain_http", |argument| argument.hide_short_help(true)))]
pub struct CreateCommand {
    /// Print all options, their syntax, and examples
    #[arg(long, action = ArgAction::HelpLong)]
    help: Option<bool>,

    #[command(flatten)]
    order: OrderArguments,

    #[command(flatten)]
    what: WhatArguments,
}

impl CreateCommand {
    /// Makes a container, and prints its ID.
    pub fn run(self) -> ExitCode {
        let attached = self.order.attached();
        let made = self.order.order(self.what, true).and_then(|ordered| {
            let Ordered { mut order, assets, image, hold, name, cid_file } = ordered;
            (order.input_once, order.attached) = (true, attached);
            Ok(create(&order, (&assets, &image), &hold, name, cid_file)?)
        });
        match made {
            Ok(id) => print(format!("{id}\n").as_bytes(), exit_code::SUCCESS),
            Err(failure) => {
                complain(&failure.message);
                failure.code.into()
            }
        }
    }
}
